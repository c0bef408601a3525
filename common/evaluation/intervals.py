"""Patient-level bootstrap: a patient's questions stand and fall together, so patients are resampled, not questions.

One resample draws as many patients as there are, with replacement. Accuracy over the drawn patients is a ratio of
sums (right answers over questions), so a resample is one row of a matrix of patient counts and all resamples are two
matrix products. Several seeds (runs) of one arm share the draw and are averaged within it: the interval is about
patients, for the mean of the runs made. Two arms on the same patients and the same `seed` get the same draws, which
is what makes their difference a paired one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 4_000_000
"""Entries of the count matrix held at once (32 MB)."""


@dataclass(frozen=True)
class Tally:
    """Right answers and questions per run, patient and feature: both arrays `[runs, patients, features]`."""

    credit: Floats
    count: Floats
    patients: tuple[tuple[str, str], ...]
    """(site, patient), sorted: the rows that are resampled."""

    @property
    def n_patients(self) -> int:
        return len(self.patients)


@dataclass(frozen=True)
class Draws:
    """Accuracy in the data as they are and in every resample `[resamples]`."""

    patients: tuple[tuple[str, str], ...]
    seed: int
    micro: float
    macro: float
    micro_draws: Floats
    macro_draws: Floats


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """First arm less second, with its interval and the one-sided bootstrap p of "not better"."""

    estimate: Estimate
    p: float


def tally(runs: Sequence[pl.DataFrame]) -> Tally:
    """Add up the `per_question` frames of an arm's runs (one a seed) by patient and feature.

    Raises:
        ValueError: no question at all.
    """
    stacked = pl.concat(
        [r.select(pl.lit(i).alias("run"), "site", "patient", "feature", "credit") for i, r in enumerate(runs)]
    )
    if stacked.is_empty():
        raise ValueError("no question to draw an interval for")
    patients = stacked.select("site", "patient").unique().sort("site", "patient")
    features = stacked.select("feature").unique().sort("feature")
    cells = (
        stacked.join(patients.with_row_index("p"), on=["site", "patient"])
        .join(features.with_row_index("f"), on="feature")
        .group_by("run", "p", "f")
        .agg(pl.col("credit").sum(), pl.len().alias("n"))
    )
    shape = (len(runs), patients.height, features.height)
    credit, count = np.zeros(shape), np.zeros(shape)
    place = tuple(cells[name].to_numpy() for name in ("run", "p", "f"))
    credit[place] = cells["credit"].to_numpy()
    count[place] = cells["n"].to_numpy()
    return Tally(credit, count, tuple(patients.iter_rows()))


def patient_counts(n_patients: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each patient is drawn: blocks `[some resamples, patients]`, the same for the same arguments."""
    rng = np.random.default_rng([seed, n_patients])
    block = max(1, CHUNK // n_patients)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, n_patients, (rows, n_patients))
        flat = (drawn + n_patients * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * n_patients).reshape(rows, n_patients).astype(np.float64)


def accuracies(weights: Floats, sums: Tally) -> tuple[Floats, Floats]:
    """Micro and macro accuracy `[resamples]` under patient weights `[resamples, patients]`, mean over the runs.

    A feature (or run) without a question in a resample is left out of that resample's mean.
    """
    micro, macro = [], []
    for credit, count in zip(sums.credit, sums.count, strict=True):
        right, asked = weights @ credit, weights @ count
        total = asked.sum(axis=1)
        micro.append(np.divide(right.sum(axis=1), total, out=np.full(total.shape, np.nan), where=total > 0))
        share = np.divide(right, asked, out=np.zeros(asked.shape), where=asked > 0)
        present = (asked > 0).sum(axis=1)
        macro.append(np.divide(share.sum(axis=1), present, out=np.full(total.shape, np.nan), where=present > 0))
    return mean_present(np.stack(micro)), mean_present(np.stack(macro))


def mean_present(values: Floats) -> Floats:
    """Mean over axis 0 of what is not NaN."""
    present = ~np.isnan(values)
    total = np.where(present, values, 0.0).sum(axis=0)
    return np.divide(total, present.sum(axis=0), out=np.full(total.shape, np.nan), where=present.any(axis=0))


def draw(sums: Tally, resamples: int, seed: int) -> Draws:
    """Resample patients `resamples` times."""
    micro, macro = accuracies(np.ones((1, sums.n_patients)), sums)
    parts = [accuracies(weights, sums) for weights in patient_counts(sums.n_patients, resamples, seed)]
    return Draws(
        patients=sums.patients,
        seed=seed,
        micro=float(micro[0]),
        macro=float(macro[0]),
        micro_draws=np.concatenate([p[0] for p in parts]),
        macro_draws=np.concatenate([p[1] for p in parts]),
    )


def interval(value: float, draws: Floats) -> Estimate:
    """95 % percentile interval of `draws`; draws without any question (NaN) are left out."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def paired(first: Draws, second: Draws, macro: bool = False) -> Difference:
    """Difference between two arms, resample by resample.

    p is the share of resamples in which the first is not better, with one added above and below so that it is never
    0: the number of resamples bounds what it can show (Davison and Hinkley 1997, section 4.2).

    Raises:
        ValueError: the arms were not drawn alike (other patients, seed or number of resamples).
    """
    if (first.patients, first.seed, len(first.micro_draws)) != (second.patients, second.seed, len(second.micro_draws)):
        raise ValueError("paired arms need the same patients, seed and number of resamples")
    if macro:
        value, gaps = first.macro - second.macro, first.macro_draws - second.macro_draws
    else:
        value, gaps = first.micro - second.micro, first.micro_draws - second.micro_draws
    gaps = gaps[~np.isnan(gaps)]
    p = (1 + int((gaps <= 0).sum())) / (1 + len(gaps))
    return Difference(interval(value, gaps), p)
