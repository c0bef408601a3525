"""Outcome and forecast: what they ask, what they show, and what they merge."""

from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from common.questions.codebook import Codebook, fit_codebook
from common.registry.registry import Registry
from common.study import Questions
from common.tasks.asking import build_tasks
from common.tasks.forecast import FORECAST
from common.tasks.masked_value import MASKED_VALUE
from common.tasks.outcome import OUTCOME
from common.tasks.task import Task

SPEC = Questions()
YES = {"died", "hospice"}


def fit(registry: Registry, spec: Questions = SPEC) -> Codebook:
    return fit_codebook(registry.frame, registry.features, spec, 1)


def asked(task: Task, registry: Registry, spec: Questions = SPEC, seed: int = 1) -> pl.DataFrame:
    return task.build(registry, registry.frame["patient"], fit(registry, spec), spec, seed, None).questions


def rows_of(registry: Registry, questions: pl.DataFrame) -> pl.DataFrame:
    """The registry's row behind each question, found by patient and record."""
    rows = registry.frame.with_columns(record=pl.int_range(pl.len(), dtype=pl.Int64).over("patient"))
    return questions.join(rows, on=["patient", "record"], how="left", maintain_order="left")


def test_an_outcome_merges_values_and_asks_whom_it_knows_it_of(ward: Registry) -> None:
    questions = asked(OUTCOME, ward)
    assert questions.height == ward.frame["end"].count() == 490
    assert set(questions["task"]) == {"outcome"} and set(questions["feature"]) == {"end"}
    for row in rows_of(ward, questions).iter_rows(named=True):
        assert sorted(row["choices"]) == ["no", "yes"]
        assert row["reference"] == row["choices"][row["answer"]] == ("yes" if row["end"] in YES else "no")
        assert row["prompt"].count(ward.outcomes[0].question) == 1
    assert questions["question_id"].is_unique().all()


@pytest.mark.parametrize("task", [OUTCOME, FORECAST])
def test_what_is_known_later_is_not_in_the_prompt(ward: Registry, task: Task) -> None:
    """Changing everything later, the outcome's own column aside, changes no byte of a question."""
    target = {"outcome": "end", "forecast": "creatinine@3"}[task.name]
    others = [f.column for f in ward.features if f.known != "24 h" and f.column != target]
    changed = replace(ward, frame=ward.frame.with_columns(pl.col(c).shuffle(3) for c in others))
    codebook = fit(ward)
    built = [task.build(r, ward.frame["patient"], codebook, SPEC, 1, None).questions for r in (ward, changed)]
    assert built[0].height > 250 and built[0].equals(built[1])
    record = built[0]["prompt"].str.split("\n\nQuestion: ").list.first()
    for hidden in ("Dialysis", "Discharged", "Hours 36", "[MASK]"):
        assert not record.str.contains(hidden, literal=True).any()
    assert record.str.contains("[Hours 0 to 12]\nCreatinine (mg/dL): ", literal=True).all()
    assert record.str.contains("[Hours 12 to 24]\nCreatinine (mg/dL): ", literal=True).all()


def test_a_forecast_stands_on_the_variables_own_statistics(ward: Registry) -> None:
    questions = asked(FORECAST, ward)
    assert questions.height == ward.frame["creatinine@3"].count()
    assert set(questions["kind"]) == {"number"} and set(questions["choices"].list.len()) == {5}
    codebook = fit(ward)
    assert "creatinine" in codebook.columns and "creatinine@3" not in codebook.columns
    for row in rows_of(ward, questions).iter_rows(named=True):
        assert float(row["reference"]) == row["creatinine@3"]
        assert row["choices"][row["answer"]] == row["reference"]


def test_strict_shuffles_the_letters_and_paper_keeps_them(ward: Registry) -> None:
    strict = Counter(asked(OUTCOME, ward)["choices"].list.first())
    assert 0.4 < strict["yes"] / 490 < 0.6
    paper = asked(OUTCOME, ward, Questions(fidelity="paper"))
    assert set(paper["choices"].list.join("|")) == {"yes|no"}
    assert paper["reference"].to_list() == asked(OUTCOME, ward)["reference"].to_list()
    assert (paper["choices"].list.get(paper["answer"]) == paper["reference"]).all()


def test_an_answer_that_nobody_in_training_had_keeps_its_letter(ward: Registry) -> None:
    """Under `paper` too, whose fixed order does not know it."""
    spec = Questions(fidelity="paper")
    odd = replace(ward, frame=ward.frame.with_columns(end=pl.lit("transfer")))
    questions = OUTCOME.build(odd, odd.frame["patient"][:20], fit(ward, spec), spec, 1, None).questions
    assert set(questions["reference"]) == {"transfer"}
    assert (questions["choices"].list.get(questions["answer"]) == "transfer").all()


def test_a_draw_is_per_task_and_per_record(ward: Registry) -> None:
    spec = Questions(tasks=("masked_value", "outcome", "forecast"))
    built = build_tasks(ward, ward.frame["patient"], fit(ward, spec), spec, 1, 1).questions
    counts = dict(built.group_by("task").len().iter_rows())
    assert counts == {"masked_value": 500, "outcome": 490, "forecast": ward.frame["creatinine@3"].count()}
    assert set(built.group_by("task", "patient", "record").len()["len"]) == {1}
    alone = Questions(tasks=("outcome",))
    assert built.filter(pl.col("task") == "outcome").equals(
        build_tasks(ward, reversed(ward.frame["patient"].to_list()), fit(ward), alone, 1, 1).questions
    )


def test_masked_values_do_not_ask_for_what_only_predictions_ask(ward: Registry) -> None:
    questions = asked(MASKED_VALUE, ward)
    assert set(questions["feature"]) == {"age", "creatinine@0", "creatinine@1", "dialysis"}
    early = questions.filter(pl.col("feature") == "creatinine@0")
    assert not early["prompt"].str.contains("Hours 12 to 24", literal=True).any()
    assert not early["prompt"].str.contains("Dialysis", literal=True).any()


def test_kinds_that_the_study_does_not_ask_are_not_forecast(ward: Registry) -> None:
    assert asked(FORECAST, ward, Questions(ask=("category",))).is_empty()
