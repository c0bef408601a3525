"""The interface holds for a record that is text and an answer that is no letter: a small task of that kind, made up
here, goes through rendering, answering, the reward, local steps and scoring beside questions with letters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.evaluation.answering import answer
from common.evaluation.scoring import per_question, right, score
from common.grpo.local import LocalTrainer
from common.grpo.rewards import exact_match, right_answer
from common.models.policy import load_policy
from common.questions.building import SCHEMA, Built, build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.questions.rendering import line_columns, prompt_expression, record_parts, value_columns
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Evaluation, Questions, parse_study
from common.tasks.task import Task

FEATURES = (
    Feature(column="note", name="Note", section="Admission", kind="text", ask=False),
    Feature(column="sex", name="Sex", section="Admission", kind="category"),
    Feature(column="diagnosis", name="Diagnosis", section="Outcome", kind="text", known="outcome", ask=False),
)
SENTENCE = "What is the diagnosis?"


def build_diagnosis(
    registry: Registry, patients: Iterable[str], codebook: Codebook, spec: Questions, seed: int, per_patient: int | None
) -> Built:
    frame = registry.frame.filter(pl.col("patient").is_in(list(patients)))
    lines = line_columns(value_columns(frame, registry.features, codebook), registry.features)
    none = pl.lit(None, dtype=pl.List(pl.String))
    prompts = lines.select(prompt_expression(record_parts(FEATURES[:1], None, registry.features), SENTENCE, none, 0))
    questions = frame.select(
        pl.format("diagnosis of {}", "patient").alias("question_id"),
        pl.lit(registry.site).alias("site"),
        "patient",
        pl.lit(0, dtype=pl.Int64).alias("record"),
        pl.lit("diagnosis").alias("task"),
        pl.lit("diagnosis").alias("feature"),
        pl.lit("Outcome").alias("section"),
        pl.lit("text").alias("kind"),
        pl.lit("Name the diagnosis within \\boxed{}.").alias("system"),
        prompts.to_series().alias("prompt"),
        pl.lit([], dtype=pl.List(pl.String)).alias("choices"),
        pl.lit(None, dtype=pl.Int64).alias("answer"),
        pl.col("diagnosis").alias("reference"),
    )
    return Built(questions.cast(dict(SCHEMA)), 0)


DIAGNOSIS = Task("diagnosis", build_diagnosis)


@pytest.fixture(scope="module")
def questions() -> pl.DataFrame:
    """Half of them about text, half with letters."""
    n = 12
    frame = pl.DataFrame({
        "patient": [f"p{i:02d}" for i in range(n)],
        "note": [f"Fever for {i} days, cough, crackles on the right." for i in range(n)],
        "sex": ["female", "male"] * (n // 2),
        "diagnosis": ["Lobar pneumonia", "Acute bronchitis"] * (n // 2),
    })  # fmt: skip
    registry, spec = Registry("clinic", FEATURES, frame), Questions()
    codebook = fit_codebook(frame, FEATURES, spec, 1)
    built = DIAGNOSIS.build(registry, frame["patient"], codebook, spec, 1, None).questions
    return pl.concat([built, build_questions(registry, frame["patient"], codebook, spec, 1, None)])


def test_the_record_is_text_and_holds_no_answer(questions: pl.DataFrame) -> None:
    first = questions.row(0, named=True)
    assert questions.schema == SCHEMA and (first["choices"], first["answer"]) == ([], None)
    assert first["prompt"] == (
        "[Admission]\nNote: Fever for 0 days, cough, crackles on the right.\n\nQuestion: What is the diagnosis?"
    )


def test_the_reward_compares_words() -> None:
    said = ["It is \\boxed{lobar  pneumonia}.", "\\boxed{Pneumonia}", "Lobar pneumonia", "\\boxed{A}", "\\boxed{A}"]
    right_words = ["Lobar pneumonia"] * 3
    assert exact_match(said[:3], right_words) == [1.0, 0.0, 0.0]
    letters = [None, None, None, "A", "B"]
    assert right_answer(said, letters, [*right_words, "yes", "no"]) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_scoring_takes_both_kinds(questions: pl.DataFrame) -> None:
    """Every other diagnosis is named right, every letter is A."""
    answered = questions.with_columns(
        completion=pl.lit("\\boxed{LOBAR PNEUMONIA}"),
        boxed=pl.when(pl.col("answer").is_not_null()).then(pl.lit(0, dtype=pl.Int64)),
        likely=pl.lit(None, dtype=pl.Int64),
    )
    assert right(answered).head(4).to_list() == [True, False, True, False]
    assert score(answered).by_task["diagnosis"].accuracy == 0.5
    shares = questions["answer"].drop_nulls().eq(0).mean()
    assert score(answered).by_task["masked_value"].accuracy == pytest.approx(shares)
    assert per_question(answered).height == 24


def test_a_model_answers_and_learns_from_both(
    questions: pl.DataFrame, tiny_model: Path, tiny_study: dict[str, Any], tmp_path: Path
) -> None:
    values = {**tiny_study, "sites": {"train": ["clinic"]}, "model": {"base": str(tiny_model)}}
    study = parse_study(values, "test")
    policy = load_policy(study, tiny_model)
    said = answer(policy, questions, Evaluation(max_completion_tokens=6))
    words = said.filter(pl.col("task") == "diagnosis")
    assert words["likely"].null_count() == words["likelihoods"].null_count() == words["boxed"].null_count() == 12
    letters = said.filter(pl.col("task") == "masked_value")
    assert (letters["likelihoods"].list.sum() - 1).abs().max() < 1e-9
    assert (letters["likelihoods"].list.arg_max().cast(pl.Int64) == letters["likely"]).all()
    trainer = LocalTrainer(policy, study, questions, "clinic")
    assert {row["letter"] is None for row in trainer.rows} == {True, False}
    assert len(trainer.run(0, 3, tmp_path).rewards) == 3
