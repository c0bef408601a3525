import polars as pl

from common.questions.codebook import fit_codebook
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions
from common.tasks.masked_value import MASKED_VALUE


def test_the_task_asks_what_it_says() -> None:
    features = (
        Feature(column="sex", name="Sex", section="A", kind="category"),
        Feature(column="site", name="Site", section="A", kind="category", ask=False),
        Feature(column="same", name="Same", section="A", kind="category"),
    )
    frame = pl.DataFrame({"patient": ["a", "b"], "sex": ["F", "M"], "site": ["x", "y"], "same": ["s", "s"]})
    registry, spec = Registry("s", features, frame), Questions()
    codebook = fit_codebook(frame, features, spec, 1)
    assert MASKED_VALUE.asks(features, codebook, spec) == [features[0]]
    questions = MASKED_VALUE.build(registry, ["a", "b"], codebook, spec, 1, None)
    assert set(questions["task"]) == {MASKED_VALUE.name} and set(questions["feature"]) == {"sex"}
    assert questions["prompt"].str.contains(MASKED_VALUE.question(features[0]), literal=True).all()
