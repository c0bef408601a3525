import polars as pl

from common.questions.building import build_questions
from common.questions.codebook import fit_codebook
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions
from common.tasks.asking import build_tasks
from common.tasks.masked_value import MASKED_VALUE


def test_the_task_asks_what_varies_and_may_be_asked() -> None:
    features = (
        Feature(column="sex", name="Sex", section="A", kind="category"),
        Feature(column="site", name="Site", section="A", kind="category", ask=False),
        Feature(column="same", name="Same", section="A", kind="category"),
    )
    frame = pl.DataFrame({"patient": ["a", "b"], "sex": ["F", "M"], "site": ["x", "y"], "same": ["s", "s"]})
    registry, spec = Registry("s", features, frame), Questions()
    codebook = fit_codebook(frame, features, spec, 1)
    questions = MASKED_VALUE.build(registry, ["a", "b"], codebook, spec, 1, None).questions
    assert set(questions["task"]) == {MASKED_VALUE.name} and set(questions["feature"]) == {"sex"}
    assert questions["prompt"].str.contains("What is the masked value of Sex?", literal=True).all()


def test_a_study_asks_masked_values_unless_told(ward: Registry) -> None:
    spec = Questions()
    codebook = fit_codebook(ward.frame, ward.features, spec, 1)
    everybody = ward.frame["patient"]
    asked = build_tasks(ward, everybody, codebook, spec, 1, 2)
    assert asked.questions.equals(build_questions(ward, everybody, codebook, spec, 1, 2))
