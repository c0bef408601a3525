"""The choices of one question, for all patients of one feature at once (`strict`).

What `strict` does so that the choices alone give nothing away:

- numbers stand on a ring of quantiles. The truth's place among the training patients is a share in [0, 1); the other
  choices are at equal steps from it, and beyond 1 the ring goes on at 0. The place of a random patient is uniform and
  so is the truth's turn among the steps, hence every choice of a ring is the truth equally often: neither rank, size,
  length, digits, distance from the others nor the column's own frequencies tell it. An arithmetic ladder cannot do
  that: its rungs reach values that no patient has, and steps that shrink before a bound point at the bound;
- a number is printed with the digits of other patients' numbers, and a rare one is not copied (`Cells`);
- every question of a feature has the same number of choices, whatever the truth;
- the truth stands at a uniform random letter;
- a question holds numbers or words, never both: words among numbers would tell which kind the truth is. So
  the binomial split of the reference between them is decided by the column (its float ratio is 0 or 1).

What is left is inherent. A value that more than a fifth of the patients have is the best guess wherever it stands. Of
up to five categories all are offered, and the most frequent is the best guess.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.codebook import Column
from common.questions.printing import print_units, to_units
from common.questions.randomness import Keys, gumbel, uniform
from common.study import Questions

EVEN = 2.0
"""The `difficulty` that spreads the choices evenly over all patients; half of it puts them twice as close."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Choices(NamedTuple):
    """`texts`: list[str] of the same length in every row; `answer`: index of the truth, Int64."""

    texts: pl.Series
    answer: pl.Series


def build_choices(column: Column, truth: pl.Series, printed: pl.Series, spec: Questions, keys: Keys) -> Choices:
    """Distractors and their order.

    Args:
        column: a maskable column of the codebook.
        truth: raw values without nulls, shape (n,); printed: the same as printed.
        keys: one per question, shape (n,).
    """
    if column.kind == "number":
        return numeric_choices(column, truth, spec, keys)
    return categorical_choices(column, printed, spec, keys)


def number_of_choices(column: Column, spec: Questions) -> int:
    """The same for every question of a column; at least 2 for a maskable one."""
    return min(spec.max_choices, len(column.values))


def categorical_choices(column: Column, printed: pl.Series, spec: Questions, keys: Keys) -> Choices:
    """All categories where they fit, else a draw without replacement by frequency.

    A value that the training patients never had gets distractors like any other.
    """
    count = number_of_choices(column, spec)
    values = pl.Series(column.values, dtype=pl.String)
    truth = places(printed, values)
    distractors = draw_others(np.array(column.counts, dtype=np.float64), truth, count - 1, keys)
    return arrange(pl.concat([printed.alias("text"), values[distractors.ravel(order="F")].alias("text")]), count, keys)


def places(printed: pl.Series, values: pl.Series) -> Ints:
    """Where each text stands among distinct `values`; -1 where it does not."""
    found = printed.cast(pl.Enum(values), strict=False).to_physical()
    return np.where(found.is_null().to_numpy(), -1, found.cast(pl.Int64).to_numpy()).astype(np.int64)


def draw_others(weights: Floats, truth: Ints, count: int, keys: Keys) -> Ints:
    """`count` distinct places per row drawn by weight, never `truth` (-1: not among them); shape (n, count)."""
    scores = np.log(weights)[None, :] + gumbel(keys, "distractors", len(weights))
    known = np.flatnonzero(truth >= 0)
    scores[known, truth[known]] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def numeric_choices(column: Column, truth: pl.Series, spec: Questions, keys: Keys) -> Choices:
    count = number_of_choices(column, spec)
    units = truth.alias("x").to_frame().select(to_units(pl.col("x"), column.decimals)).to_series().to_numpy()
    noted = cells(column)
    # As far apart as the most frequent value is wide, so that no two choices meet in it where that can be helped.
    spacing = min(1 / count, max(spec.difficulty / EVEN / count, noted.counts.max() / noted.counts.sum()))
    table = ring(noted, units, count, spacing, keys)
    flat = pl.Series("text", table.ravel(order="F")).to_frame()
    printed = flat.select(print_units(pl.col("text"), column.decimals)).to_series()
    return arrange(printed, count, keys)


class Cells(NamedTuple):
    """The training patients' numbers in ascending cells that leave no number out; all in printed units, shape (m,).

    A cell holds the numbers nearer to its `value` than to its neighbours', up to `upper`. `counts` patients are in it.
    A value that several patients have stands for itself. One that a single patient has stands for any number of its
    cell that is as round (`first` to `last` steps of the column's grain away), so that no patient's own number is
    copied into another's question, and a number that nobody had in training is no rarer among the other choices.
    """

    value: Ints
    counts: Ints
    upper: Ints
    first: Ints
    last: Ints
    grain: int


def cells(column: Column) -> Cells:
    noted = np.array([round(float(v) * 10**column.decimals) for v in column.values], dtype=np.int64)
    order = np.argsort(noted)
    value, counts = noted[order], np.array(column.counts, dtype=np.int64)[order]
    between = (value[:-1] + value[1:]) // 2
    upper, lower = np.append(between, value[-1]), np.append(value[0], between + 1)
    alone = counts == 1
    first = np.where(alone, -((value - lower) // column.grain), 0)
    last = np.where(alone, (upper - value) // column.grain, 0)
    return Cells(value, counts, upper, first, last, column.grain)


def ring(cells: Cells, truth: Ints, count: int, spacing: float, keys: Keys) -> Ints:
    """`count` distinct numbers per row in printed units, the truth in column 0, shape (n, count).

    Args:
        truth: printed units, shape (n,); spacing: of neighbours on the ring, as a share of the patients.
    """
    below = np.cumsum(cells.counts) - cells.counts
    total = int(cells.counts.sum())
    draws = uniform(keys, "ring", 2)
    place = np.minimum(np.searchsorted(cells.upper, truth), len(cells.value) - 1)
    share = (below[place] + draws[:, 0] * cells.counts[place]) / total
    rank = np.floor(draws[:, 1] * count).astype(np.int64)
    others = np.arange(1, count)[None, :]
    # Places 0..count-1 on the ring without the truth's own.
    turns = np.where(others <= rank[:, None], others - 1, others) - rank[:, None]
    shares = (share[:, None] + turns * spacing) % 1.0
    held = np.searchsorted(below, shares * total, side="right") - 1
    held = apart(cells, np.column_stack([place, held]), keys)[:, 1:]
    first, last = cells.first[held], cells.last[held]
    steps = first + np.floor(uniform(keys, "within", count - 1) * (last - first + 1)).astype(np.int64)
    return np.column_stack([truth, cells.value[held] + steps * cells.grain])


def apart(cells: Cells, held: Ints, keys: Keys) -> Ints:
    """A cell that stands twice in a row (a value of very many patients) is replaced by others, by frequency."""
    held = held.copy()
    below = np.cumsum(cells.counts) - cells.counts
    draws = uniform(keys, "apart", held.shape[1])
    for i in range(1, held.shape[1]):
        again = np.flatnonzero((held[:, :i] == held[:, i : i + 1]).any(axis=1))
        taken = np.sort(held[again, :i], axis=1)
        # A place among the patients outside the taken cells, then past every taken cell that lies before it.
        spot = draws[again, i] * (cells.counts.sum() - cells.counts[taken].sum(axis=1))
        for j in range(i):
            spot = spot + np.where(spot >= below[taken[:, j]], cells.counts[taken[:, j]], 0)
        held[again, i] = np.searchsorted(below, spot, side="right") - 1
    return held


def arrange(texts: pl.Series, count: int, keys: Keys) -> Choices:
    """Shuffle each row of choices; the truth goes to a uniform random letter.

    Args:
        texts: all first choices (the truths), then all second ones, and so on: shape (count * n,).
    """
    order = np.argsort(uniform(keys, "letters", count), axis=1, kind="stable")
    return Choices(in_order(texts, order), pl.Series("answer", np.argmin(order, axis=1).astype(np.int64)))


def in_order(texts: pl.Series, order: Ints) -> pl.Series:
    """Each row's texts in its own order, as lists; `order`: which of its choices stands where, shape (n, count)."""
    rows = np.arange(len(order))[:, None]
    table = texts[(order * len(order) + rows).ravel()].reshape(order.shape)
    return table.cast(pl.List(pl.String)).alias("choices")
