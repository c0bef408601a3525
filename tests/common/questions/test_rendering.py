import polars as pl

from common.questions.building import build_questions, lookup_questions
from common.questions.codebook import fit_codebook
from common.questions.printing import print_units
from common.questions.rendering import SYSTEM, ask_masked, label, render_choices, render_question
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions

SEX = Feature(column="sex", name="Sex", section="Demographics", kind="category")
LACTATE = Feature(column="lac", name="Lactate", unit="mmol/L", section="Labs", kind="number")
DEATH = Feature(column="death", name="Death", section="Outcome", kind="category", known="outcome")


def test_one_question_as_text() -> None:
    assert label(LACTATE) == "Lactate (mmol/L)" and label(SEX) == "Sex"
    assert render_choices(["Yes", "No"]) == "A. Yes\nB. No"
    assert render_question("[Labs]\nLactate (mmol/L): [MASK]", ask_masked(LACTATE), ["1.0", "2.0"]) == (
        "[Labs]\nLactate (mmol/L): [MASK]\n\nQuestion: What is the masked value of Lactate (mmol/L)?\nA. 1.0\nB. 2.0"
    )
    assert "\\boxed{}" in SYSTEM


def small() -> Registry:
    frame = pl.DataFrame(
        {
            "patient": ["a", "b", "c", "d"],
            "sex": ["Female", "Male", "Female", "Male"],
            "lac": [1.0, 2.5, None, 2.5],
            "death": ["No", "No", "Yes", None],
        }
    )
    return Registry("small", (SEX, LACTATE, DEATH), frame)


def test_a_whole_prompt() -> None:
    registry, spec = small(), Questions(mi_threshold=10.0)
    codebook = fit_codebook(registry.frame, registry.features, spec, 1)
    questions = build_questions(registry, ["a", "c", "d"], codebook, spec, 1, None)
    records = {(q["patient"], q["feature"]): q["prompt"].split("\n\n")[0] for q in questions.iter_rows(named=True)}
    assert records == {
        ("a", "sex"): "[Demographics]\nSex: [MASK]\n[Labs]\nLactate (mmol/L): 1.0",
        ("a", "lac"): "[Demographics]\nSex: Female\n[Labs]\nLactate (mmol/L): [MASK]",
        ("a", "death"): "[Demographics]\nSex: Female\n[Labs]\nLactate (mmol/L): 1.0\n[Outcome]\nDeath: [MASK]",
        ("c", "sex"): "[Demographics]\nSex: [MASK]",
        ("c", "death"): "[Demographics]\nSex: Female\n[Outcome]\nDeath: [MASK]",
        ("d", "sex"): "[Demographics]\nSex: [MASK]\n[Labs]\nLactate (mmol/L): 2.5",
        ("d", "lac"): "[Demographics]\nSex: Male\n[Labs]\nLactate (mmol/L): [MASK]",
    }
    for q in questions.iter_rows(named=True):
        feature = next(f for f in registry.features if f.column == q["feature"])
        assert q["prompt"] == render_question(q["prompt"].split("\n\n")[0], ask_masked(feature), q["choices"])


def test_a_lookup_shows_its_answer() -> None:
    registry, spec = small(), Questions()
    codebook = fit_codebook(registry.frame, registry.features, spec, 1)
    questions = lookup_questions(registry, codebook, spec, 1, 100)
    assert questions.height == 10 and set(questions["task"]) == {"lookup"}
    for q in questions.iter_rows(named=True):
        feature = next(f for f in registry.features if f.column == q["feature"])
        assert f"\n{label(feature)}: {q['choices'][q['answer']]}\n" in q["prompt"]
        assert f"Question: What is the value of {label(feature)}?" in q["prompt"]
    assert lookup_questions(registry, codebook, spec, 1, 3).height == 3


def test_numbers_print_with_fixed_decimals() -> None:
    units = pl.DataFrame({"x": [0, 5, -5, 105, -1234, None]}, schema={"x": pl.Int64})
    printed = units.select(print_units(pl.col("x"), 2)).to_series().to_list()
    assert printed == ["0.00", "0.05", "-0.05", "1.05", "-12.34", None]
    assert units.select(print_units(pl.col("x"), 0)).to_series().to_list()[4] == "-1234"
