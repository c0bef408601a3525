"""From answered questions to accuracies.

An answered frame (docs/design.md) may hold a `model` column: several models answered each question. A question's
credit is then the mean over its models, so that a question weighs the same in every arm.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from common.grpo.rewards import exact_match

Reading = Literal["boxed_or_likely", "boxed", "likely"]
"""How an answer is read: the letter in the box, and the likeliest letter where there is no box (the reading of the
C-Reason paper); the box alone; the likeliest letter alone. No letter is a wrong answer in all three. A question without
choices is read one way only: the words in the box."""

LETTERS = "ABCDE"
QUESTION = ("site", "patient", "question_id", "task", "feature", "section", "kind")


@dataclass(frozen=True)
class Group:
    """A part of the questions: accuracy in [0, 1], its number of questions and of patients."""

    accuracy: float
    n_questions: int
    n_patients: int


@dataclass(frozen=True)
class Scores:
    """What one arm reached on one set of questions. Accuracies and rates are shares in [0, 1]."""

    reading: Reading
    n_patients: int
    n_questions: int
    accuracy: float
    """Mean over questions (micro)."""
    macro: float
    """Mean over features of the feature's accuracy."""
    by_task: dict[str, Group]
    by_feature: dict[str, Group]
    by_section: dict[str, Group]
    by_kind: dict[str, Group]
    boxed_rate: float
    """Share of answers with a readable letter in the box."""
    answered_letters: dict[str, float]
    """Share of answers that give each letter; what is missing to 1 gave none."""
    key_letters: dict[str, float]
    """Share of questions whose right choice carries each letter."""


def chosen(reading: Reading) -> pl.Expr:
    """The choice index that counts as the answer, null where there is none."""
    if reading == "boxed_or_likely":
        return pl.coalesce("boxed", "likely")
    return pl.col(reading)


def right(answered: pl.DataFrame, reading: Reading = "boxed_or_likely") -> pl.Series:
    """Whether each answer is right, Boolean without nulls."""
    by_letter = answered.select((chosen(reading) == pl.col("answer")).fill_null(False)).to_series()
    words = answered["answer"].is_null()
    if not words.any():
        return by_letter
    by_words = exact_match(answered["completion"].to_list(), answered["reference"].to_list())
    return (by_letter & ~words) | (pl.Series(by_words).cast(pl.Boolean) & words)


def per_question(answered: pl.DataFrame, reading: Reading = "boxed_or_likely") -> pl.DataFrame:
    """One row a question: `site, patient, question_id, task, feature, section, kind`, `credit` (Float64 in [0, 1], the
    share of its models that are right) and `boxed_rate`; sorted by site, patient and question.

    Raises:
        ValueError: one model answered one question twice.
    """
    per_answer = list(QUESTION[:3]) + (["model"] if "model" in answered.columns else [])
    if answered.select(per_answer).is_duplicated().any():
        raise ValueError("a question is answered twice by one model")
    return (
        answered.with_columns(credit=right(answered, reading))
        .group_by(QUESTION)
        .agg(
            credit=pl.col("credit").mean(),
            boxed_rate=pl.col("boxed").is_not_null().mean(),
        )
        .sort("site", "patient", "question_id")
    )


def grouped(questions: pl.DataFrame, column: str) -> dict[str, Group]:
    """Accuracy for each value of `column`, of a frame that `per_question` made."""
    table = (
        questions.group_by(column)
        .agg(pl.col("credit").mean(), pl.len().alias("n"), pl.struct("site", "patient").n_unique().alias("patients"))
        .sort(column)
    )
    return {
        name: Group(accuracy, n, patients)
        for name, accuracy, n, patients in table.select(column, "credit", "n", "patients").iter_rows()
    }


def letter_shares(answered: pl.DataFrame, choice: pl.Expr) -> dict[str, float]:
    row = answered.select([(choice == i).fill_null(False).mean().alias(x) for i, x in enumerate(LETTERS)])
    return row.row(0, named=True)


def score(answered: pl.DataFrame, reading: Reading = "boxed_or_likely") -> Scores:
    """Score an answered frame.

    Raises:
        ValueError: no question at all, or a question answered twice by one model.
    """
    if answered.is_empty():
        raise ValueError("no answered question to score")
    questions = per_question(answered, reading)
    by_feature = grouped(questions, "feature")
    return Scores(
        reading=reading,
        n_patients=questions.select(pl.struct("site", "patient").n_unique()).item(),
        n_questions=questions.height,
        accuracy=questions.select(pl.col("credit").mean()).item(),
        macro=sum(g.accuracy for g in by_feature.values()) / len(by_feature),
        by_task=grouped(questions, "task"),
        by_feature=by_feature,
        by_section=grouped(questions, "section"),
        by_kind=grouped(questions, "kind"),
        boxed_rate=questions.select(pl.col("boxed_rate").mean()).item(),
        answered_letters=letter_shares(answered, chosen(reading)),
        key_letters=letter_shares(answered, pl.col("answer")),
    )
