"""How well a model tells an outcome that most patients do not have.

Where one patient in twenty dies, naming the majority is right in 95 % and tells nothing. So of each outcome question:
balanced accuracy (the mean over its answers of the share of those that were recognised; 50 % is chance between two),
F1 of "yes" (the mean over the answers where they are not yes and no), and AUROC from the letters' likelihoods (one
against the others, mean over the answers; 0.5 is chance), beside the share of the most frequent answer.

The intervals are those of `intervals.py`: patients are drawn, with all their records, and seeds averaged in a draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.evaluation.intervals import Estimate, Floats, interval, mean_present, patient_counts
from common.evaluation.scoring import chosen

POSITIVE = "yes"


@dataclass(frozen=True)
class Discrimination:
    """One arm on one outcome question. A figure is None where it has no value: AUROC without likelihoods, and any of
    them where all patients came to the same end."""

    n_questions: int
    n_patients: int
    majority: float
    balanced_accuracy: Estimate | None
    f1: Estimate | None
    auroc: Estimate | None


@dataclass(frozen=True)
class Answers:
    """One seed's answers to one outcome question, a row each.

    `patient`: place among the patients that are drawn; `share`: 1 / models that answered the question; `truth`,
    `said`: `[rows, names]` of 0 and 1; `score`: likelihood of each name, 0 where it was not offered, NaN if unknown.
    """

    patient: NDArray[np.int64]
    share: Floats
    truth: Floats
    said: Floats
    score: Floats


def discrimination(runs: Sequence[pl.DataFrame], resamples: int, seed: int) -> Discrimination:
    """Args: runs: answered frames about one feature, one a seed, each with at least one question."""
    stacked = pl.concat([run.select("site", "patient", "reference") for run in runs])
    patients = stacked.select("site", "patient").unique().sort("site", "patient").with_row_index("place")
    names = sorted(stacked["reference"].unique())
    answers = [read_answers(run, patients, names) for run in runs]
    asked = [run.unique(["site", "patient", "question_id"])["reference"] for run in runs]
    blocks = [np.ones((1, patients.height)), *patient_counts(patients.height, resamples, seed)]
    figures = np.concatenate([measure(answers, names, weights) for weights in blocks], axis=1)
    balanced, f1, auroc = (None if np.isnan(row[0]) else interval(float(row[0]), row[1:]) for row in figures)
    return Discrimination(
        n_questions=round(float(np.mean([len(references) for references in asked]))),
        n_patients=patients.height,
        majority=float(np.mean([majority(references) for references in asked])),
        balanced_accuracy=balanced,
        f1=f1,
        auroc=auroc,
    )


def majority(references: pl.Series) -> float:
    """Share of the most frequent answer."""
    return int(np.unique(references.to_numpy(), return_counts=True)[1].max()) / len(references)


def read_answers(run: pl.DataFrame, patients: pl.DataFrame, names: Sequence[str]) -> Answers:
    said = pl.col("choices").list.get(chosen("boxed_or_likely"))
    rows = run.join(patients, on=["site", "patient"], how="left", maintain_order="left").with_columns(
        said=said, share=1 / pl.len().over("site", "patient", "question_id")
    )
    score = np.full((rows.height, len(names)), np.nan)
    for i, (choices, likelihoods) in enumerate(rows.select("choices", "likelihoods").iter_rows()):
        if likelihoods is not None:
            known = dict(zip(choices, likelihoods, strict=True))
            score[i] = [known.get(name, 0.0) for name in names]
    return Answers(
        patient=rows["place"].to_numpy().astype(np.int64),
        share=rows["share"].to_numpy(),
        truth=np.column_stack([(rows["reference"] == name).to_numpy() for name in names]).astype(float),
        said=np.column_stack([(rows["said"] == name).fill_null(False).to_numpy() for name in names]).astype(float),
        score=score,
    )


def measure(runs: Sequence[Answers], names: Sequence[str], weights: Floats) -> Floats:
    """Balanced accuracy, F1 and AUROC `[3, resamples]` under patient weights `[resamples, patients]`, mean over the
    runs; NaN where an answer that is needed was not drawn."""
    by_run = []
    for run in runs:
        drawn = weights[:, run.patient] * run.share
        hit, true, said = drawn @ (run.truth * run.said), drawn @ run.truth, drawn @ run.said
        f1 = divide(2 * hit, true + said)
        wanted = f1[:, names.index(POSITIVE)] if POSITIVE in names else mean_present(f1.T)
        ranked = [auroc(drawn, run.truth[:, i], run.score[:, i]) for i in range(len(names))]
        by_run.append([mean_present(divide(hit, true).T), wanted, mean_present(np.stack(ranked))])
    figures = mean_present(np.array(by_run))
    return figures if len(names) > 1 else np.full(figures.shape, np.nan)


def divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def auroc(drawn: Floats, truth: Floats, score: Floats) -> Floats:
    """`[resamples]`: how often a drawn record that is `truth` scores above one that is not, ties half (Mann-Whitney).

    Args:
        drawn: weights `[resamples, rows]`; truth: 0 or 1; score: `[rows]`, NaN if unknown.
    """
    if np.isnan(score).any():
        return np.full(len(drawn), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    yes = np.add.reduceat(drawn[:, order] * truth[order], starts, axis=1)
    no = np.add.reduceat(drawn[:, order] * (1 - truth[order]), starts, axis=1)
    below = np.cumsum(no, axis=1) - no
    return divide((yes * (below + no / 2)).sum(axis=1), yes.sum(axis=1) * no.sum(axis=1))
