import polars as pl
import pytest

from common.evaluation.scoring import per_question, score


def answered(rows: list[tuple], model: list[str] | None = None) -> pl.DataFrame:
    """Rows of (patient, feature, answer, boxed, likely)."""
    frame = pl.DataFrame(
        rows,
        schema={"patient": pl.Utf8, "feature": pl.Utf8, "answer": pl.Int64, "boxed": pl.Int64, "likely": pl.Int64},
        orient="row",
    ).with_columns(
        question_id=pl.col("patient") + "/" + pl.col("feature"),
        site=pl.lit("north"),
        task=pl.lit("masked_value"),
        section=pl.col("feature").replace_strict({"age": "who", "sex": "who", "lactate": "labs"}),
        kind=pl.col("feature").replace_strict({"age": "number", "sex": "category", "lactate": "number"}),
    )
    return frame if model is None else frame.with_columns(model=pl.Series(model))


ROWS = [
    ("p1", "age", 0, 0, 1),
    ("p1", "sex", 1, None, 1),
    ("p2", "age", 2, 3, 2),
    ("p2", "lactate", 4, None, None),
]


def test_the_two_readings_by_hand():
    paper, likely, boxed = (score(answered(ROWS), r) for r in ("boxed_or_likely", "likely", "boxed"))
    assert (paper.accuracy, likely.accuracy, boxed.accuracy) == (2 / 4, 2 / 4, 1 / 4)
    assert {k: g.accuracy for k, g in paper.by_feature.items()} == {"age": 0.5, "lactate": 0.0, "sex": 1.0}
    assert {k: g.accuracy for k, g in likely.by_feature.items()} == {"age": 0.5, "lactate": 0.0, "sex": 1.0}
    assert paper.macro == 0.5
    assert boxed.macro == pytest.approx(0.5 / 3)
    assert paper.by_section["who"].accuracy == pytest.approx(2 / 3)
    assert paper.by_section["who"].n_questions == 3
    assert paper.by_kind["number"].n_patients == 2
    assert (paper.n_patients, paper.n_questions, paper.boxed_rate) == (2, 4, 0.5)


def test_letters_of_answers_and_key():
    scores = score(answered(ROWS))
    assert scores.answered_letters == {"A": 0.25, "B": 0.25, "C": 0.0, "D": 0.25, "E": 0.0}
    assert scores.key_letters == {"A": 0.25, "B": 0.25, "C": 0.25, "D": 0.0, "E": 0.25}


def test_several_models_share_a_question():
    rows = [("p1", "age", 0, 0, 0), ("p1", "age", 0, 1, 0), ("p2", "sex", 1, 1, 1)]
    frame = answered(rows, model=["north", "south", "north"])
    assert per_question(frame)["credit"].to_list() == [0.5, 1.0]
    assert score(frame).accuracy == 0.75
    assert score(frame).n_questions == 2


def test_patients_of_two_sites_with_one_number_are_two():
    frame = pl.concat([answered(ROWS), answered(ROWS).with_columns(site=pl.lit("south"))])
    assert score(frame).n_patients == 4
    assert score(frame).n_questions == 8


def test_twice_answered_and_nothing_answered_are_refused():
    with pytest.raises(ValueError, match="twice"):
        score(answered([ROWS[0], ROWS[0]]))
    with pytest.raises(ValueError, match="no answered"):
        score(answered([]))
