"""The choices of one question, for all patients of one feature at once (`strict`).

What `strict` does so that the choices alone give nothing away beyond the column's own frequencies:

- all choices of a question are printed alike, the truth included, and the ladder's step is a round number, so
  that all end in the same digits: people note a pressure of 150 and not of 147, so digits would tell the truth;
- every question of a feature has the same number of choices, whatever the truth;
- the truth's rank on a numeric ladder is uniform. Where over 95 % of the column is not negative and a rung would
  be, the rungs are redrawn with a smaller step that leaves room, and only where whole printed units leave none
  (a truth of 0, say) is the rank itself redrawn among the possible ones;
- the truth stands at a uniform random letter;
- a question holds numbers or words, never both: words among numbers would tell which kind the truth is. So
  the binomial split of the reference between them is decided by the column (its float ratio is 0 or 1).
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.codebook import Column
from common.questions.printing import print_units, to_units
from common.questions.randomness import Keys, gumbel, uniform
from common.study import Questions

LEAST_SD = 0.1
NONNEGATIVE = 0.95
LOG_SMALLEST = -745.0
"""Below this a density is 0 in float64."""

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
    place = {value: i for i, value in enumerate(column.values)}
    truth = np.array([place.get(value, -1) for value in printed], dtype=np.int64)
    distractors = draw_others(np.array(column.counts, dtype=np.float64), truth, count - 1, keys)
    values = np.array(column.values, dtype=object)
    table = np.empty((len(keys), count), dtype=object)
    table[:, 0] = printed.to_numpy()
    table[:, 1:] = values[distractors]
    return arrange([pl.Series(table[:, i], dtype=pl.String) for i in range(count)], keys)


def draw_others(weights: Floats, truth: Ints, count: int, keys: Keys) -> Ints:
    """`count` distinct places per row drawn by weight, never `truth` (-1: not among them); shape (n, count)."""
    scores = np.log(weights)[None, :] + gumbel(keys, "distractors", len(weights))
    known = np.flatnonzero(truth >= 0)
    scores[known, truth[known]] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def numeric_choices(column: Column, truth: pl.Series, spec: Questions, keys: Keys) -> Choices:
    count = number_of_choices(column, spec)
    units = truth.alias("x").to_frame().select(to_units(pl.col("x"), column.decimals)).to_series().to_numpy()
    sd = posterior_sd(column, truth.to_numpy(), keys)
    # A sd of 0 marks a truth where every density is 0.
    laddered = sd >= LEAST_SD
    step = np.maximum(1, np.round(spec.difficulty * sd * 10.0**column.decimals)).astype(np.int64)
    table = ladder(units, step, count, column, keys)
    if not laddered.all():
        table[~laddered] = observed(column, units[~laddered], count, keys[~laddered])
    printed = pl.DataFrame(table, schema=[str(i) for i in range(count)], orient="row").select(
        print_units(pl.col(str(i)), column.decimals).alias(str(i)) for i in range(count)
    )
    return arrange(printed.get_columns(), keys)


def posterior_sd(column: Column, truth: Floats, keys: Keys) -> Floats:
    """The sd of a mixture component drawn by its posterior at the truth, shape (n,); 0 where no density is left."""
    weight = np.array([[c.weight for c in column.mixture]])
    mean = np.array([[c.mean for c in column.mixture]])
    sd = np.array([[c.sd for c in column.mixture]])
    logs = np.log(weight) - np.log(sd) - 0.5 * np.log(2 * np.pi) - 0.5 * ((truth[:, None] - mean) / sd) ** 2
    drawn = np.argmax(logs + gumbel(keys, "component", logs.shape[1]), axis=1)
    return np.where(logs.max(axis=1) > LOG_SMALLEST, sd[0, drawn], 0.0)


def ladder(truth: Ints, step: Ints, count: int, column: Column, keys: Keys) -> Ints:
    """An arithmetic ladder through the truth in printed units, the truth in column 0, shape (n, count).

    Args:
        truth: shape (n,); step: wanted steps, at least 1, shape (n,); both in printed units.
    """
    draws = uniform(keys, "ladder", 2)
    rank = np.floor(draws[:, 0] * count).astype(np.int64)
    step = round_step(step, column.grain)
    if column.share_nonnegative > NONNEGATIVE:
        # A negative truth is its own reason for negative rungs; bounding the others would point at it.
        bounded = (truth >= 0) & (rank > 0)
        no_room = bounded & (rank > truth)
        rank = np.where(no_room, np.floor(draws[:, 1] * (truth + 1)).astype(np.int64), rank)
        room = truth // np.maximum(rank, 1)
        # A random share of the room, so that the lowest rung is not always next to 0.
        smaller = np.floor(room * (0.5 + 0.5 * draws[:, 1])).astype(np.int64)
        step = np.where(bounded & (rank > 0) & (step > room), shorten_step(np.maximum(1, smaller), column.grain), step)
    others = np.arange(1, count)[None, :]
    # Rungs 0..count-1 without the truth's own.
    rungs = np.where(others <= rank[:, None], others - 1, others)
    return np.column_stack([truth, truth[:, None] + (rungs - rank[:, None]) * step[:, None]])


def round_step(step: Ints, grain: int) -> Ints:
    """To one significant digit and a multiple of the grain; at least the grain."""
    size = 10 ** np.floor(np.log10(step)).astype(np.int64)
    one_digit = np.round(step / size).astype(np.int64) * size
    return np.maximum(1, np.round(one_digit / grain).astype(np.int64)) * grain


def shorten_step(step: Ints, grain: int) -> Ints:
    """Down to one significant digit and, where it is not under it, to a multiple of the grain."""
    size = 10 ** np.floor(np.log10(step)).astype(np.int64)
    one_digit = step // size * size
    return np.where(one_digit >= grain, one_digit // grain * grain, one_digit)


def observed(column: Column, truth: Ints, count: int, keys: Keys) -> Ints:
    """Other observed values by frequency, the truth in column 0, in printed units, shape (n, count)."""
    values = np.array([round(float(v) * 10**column.decimals) for v in column.values], dtype=np.int64)
    same = values[None, :] == truth[:, None]
    place = np.where(same.any(axis=1), same.argmax(axis=1), -1)
    others = draw_others(np.array(column.counts, dtype=np.float64), place, count - 1, keys)
    return np.column_stack([truth, values[others]])


def arrange(columns: list[pl.Series], keys: Keys) -> Choices:
    """Shuffle each row of choices; column 0 is the truth and goes to a uniform random letter."""
    table = np.column_stack([c.to_numpy() for c in columns]).astype(object)
    order = np.argsort(uniform(keys, "letters", len(columns)), axis=1, kind="stable")
    shuffled = np.take_along_axis(table, order, axis=1)
    frame = pl.DataFrame([pl.Series(str(i), shuffled[:, i], dtype=pl.String) for i in range(len(columns))])
    texts = frame.select(pl.concat_list(pl.all())).to_series().alias("choices")
    return Choices(texts, pl.Series("answer", np.argmin(order, axis=1).astype(np.int64)))
