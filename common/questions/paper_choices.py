"""The choices of one question as the C-Reason reference makes them (method.md, section 1), leaks and all.

For all patients of one feature at once. Where method.md is silent:

- other observed values are drawn by frequency, like categories, and rounded like rungs;
- a word has no density, so a word's numeric distractors are other observed values;
- where the binomial draw asks for more words than there are, numbers take their place;
- "rounded" is to the nearest, ties to even; a rounded rung that equals the truth as a number is its duplicate.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.choices import Choices, draw_others, in_order, places
from common.questions.codebook import Column
from common.questions.paper_codebook import as_numbers
from common.questions.printing import print_units
from common.questions.randomness import Keys, combine, gumbel, hash_keys, uniform
from common.study import Questions

LEAST_SD = 0.1
NONNEGATIVE = 0.95
LOG_SMALLEST = -745.0
"""Below this a density is 0 in float64."""
WHOLE = 0.9
CELLS = 4_000_000
"""Of a table of rows x observed values that is in memory at once."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def paper_choices(column: Column, printed: pl.Series, spec: Questions, keys: Keys) -> Choices:
    """Distractors and their order. A row whose list holds the truth alone has no distractor left.

    Args:
        column: a maskable column of a `paper` codebook.
        printed: the truth as it is recorded, without nulls, shape (n,); keys: one per question, shape (n,).
    """
    numbers = as_numbers(pl.Series(column.values, dtype=pl.String)).to_numpy()
    is_word = np.isnan(numbers) if column.kind == "number" else np.ones(len(numbers), dtype=bool)
    most = spec.max_choices - 1
    words, is_there, wanted = word_distractors(column, is_word, printed, most, keys)
    texts, there = [printed, words], [np.ones((len(keys), 1), dtype=bool), is_there]
    if column.kind == "number":
        truth = as_numbers(printed).to_numpy()
        rungs = numeric_distractors(column, numbers, truth, most - wanted, most, spec, keys)
        rounded, is_there = print_distractors(column, rungs, truth)
        texts.append(rounded)
        there.append(is_there)
    return shuffle(pl.concat([text.alias("text") for text in texts]), np.column_stack(there), keys)


def word_distractors(
    column: Column, is_word: NDArray[np.bool_], printed: pl.Series, most: int, keys: Keys
) -> tuple[pl.Series, NDArray[np.bool_], Ints]:
    """Binomial(most, 1 - float_ratio) categories without replacement by frequency, never the truth.

    Returns:
        all first ones, then all second ones, and so on: texts, shape (most * n,); which are there, shape (n, most);
        how many each row has, shape (n,).
    """
    values = pl.Series(column.values, dtype=pl.String).filter(is_word)
    counts = np.array(column.counts, dtype=np.float64)[is_word]
    truth = places(printed, values)
    drawn = (uniform(keys, "binomial", most) > column.float_ratio).sum(axis=1)
    wanted = np.minimum(drawn, len(values) - (truth >= 0))
    others = draw_others(counts, truth, most, keys)
    picked = np.full((len(keys), most), len(values))
    picked[:, : others.shape[1]] = others
    texts = values.extend_constant(None, 1)[picked.ravel(order="F")]
    return texts, np.arange(most) < wanted[:, None], wanted


def numeric_distractors(
    column: Column, numbers: Floats, truth: Floats, wanted: Ints, most: int, spec: Questions, keys: Keys
) -> Floats:
    """The first `wanted` of each row, as numbers before any rounding, NaN beyond; shape (n, most).

    Args:
        numbers: the column's distinct values, NaN where one is a word; truth: NaN where it is a word, shape (n,).
    """
    sd = np.zeros(len(truth))
    known = np.isfinite(truth)
    sd[known] = posterior_sd(column, truth[known], keys[known])
    # A sd of 0 marks a truth where every density is 0.
    laddered = sd >= LEAST_SD
    table = np.full((len(truth), most), np.nan)
    table[laddered] = rungs_around(
        truth[laddered], spec.difficulty * sd[laddered], wanted[laddered], most, keys[laddered]
    )
    table[~laddered] = observed(column, numbers, truth[~laddered], most, keys[~laddered])
    return np.where(np.arange(most)[None, :] < wanted[:, None], table, np.nan)


def posterior_sd(column: Column, truth: Floats, keys: Keys) -> Floats:
    """The sd of a mixture component drawn by its posterior at the truth, shape (n,); 0 where no density is left."""
    weight = np.array([[c.weight for c in column.mixture]])
    mean = np.array([[c.mean for c in column.mixture]])
    sd = np.array([[c.sd for c in column.mixture]])
    logs = np.log(weight) - np.log(sd) - 0.5 * np.log(2 * np.pi) - 0.5 * ((truth[:, None] - mean) / sd) ** 2
    drawn = np.argmax(logs + gumbel(keys, "component", logs.shape[1]), axis=1)
    return np.where(logs.max(axis=1) > LOG_SMALLEST, sd[0, drawn], 0.0)


def rungs_around(truth: Floats, step: Floats, wanted: Ints, most: int, keys: Keys) -> Floats:
    """Rungs of an arithmetic ladder of `wanted` + 1 without the truth's own, whose rank is uniform; (n, most)."""
    rank = np.floor(uniform(keys, "ladder", 1)[:, 0] * (wanted + 1)).astype(np.int64)
    others = np.arange(most)[None, :]
    places = np.where(others < rank[:, None], others, others + 1)
    return truth[:, None] + (places - rank[:, None]) * step[:, None]


def observed(column: Column, numbers: Floats, truth: Floats, most: int, keys: Keys) -> Floats:
    """Other observed numbers by frequency, NaN where there are too few; shape (n, most)."""
    is_number = np.isfinite(numbers)
    values, counts = numbers[is_number], np.array(column.counts, dtype=np.float64)[is_number]
    keys = combine(keys, hash_keys(0, "observed", ["numbers"]))
    table = np.full((len(truth), most), np.nan)
    size = max(1, CELLS // len(values))
    for start in range(0, len(truth), size):
        part = slice(start, start + size)
        same = values[None, :] == truth[part, None]
        place = np.where(same.any(axis=1), same.argmax(axis=1), -1)
        picked = values[draw_others(counts, place, most, keys[part])]
        table[part, : picked.shape[1]] = picked
    return table


def print_distractors(column: Column, rungs: Floats, truth: Floats) -> tuple[pl.Series, NDArray[np.bool_]]:
    """As text, whole or with 1 decimal.

    Args:
        rungs: shape (n, most), NaN where there is none; truth: shape (n,).

    Returns:
        all first ones, then all second ones, and so on: texts, shape (most * n,); which are there, shape (n, most):
        no negative one of a column that has hardly any, and no duplicate.
    """
    if column.share_nonnegative > NONNEGATIVE:
        rungs = np.where(rungs < 0, np.nan, rungs)
    decimals = 0 if column.share_whole > WHOLE else 1
    there = np.isfinite(rungs)
    units = np.where(there, np.round(np.where(there, rungs, 0.0) * 10**decimals), 0.0).astype(np.int64)
    there &= units / 10**decimals != truth[:, None]
    for i in range(1, rungs.shape[1]):
        there[:, i] &= ~((units[:, :i] == units[:, i : i + 1]) & there[:, :i]).any(axis=1)
    flat = pl.Series("text", units.ravel(order="F")).to_frame()
    return flat.select(print_units(pl.col("text"), decimals)).to_series(), there


def shuffle(texts: pl.Series, there: NDArray[np.bool_], keys: Keys) -> Choices:
    """Each row's texts that are there, in random order; the truth stands at a uniform random letter.

    Args:
        texts: all truths, then all first distractors, and so on, shape (k * n,); there: shape (n, k).
    """
    draws = np.where(there, uniform(keys, "letters", there.shape[1]), 2.0)
    order = np.argsort(draws, axis=1, kind="stable")
    lists = in_order(texts, order).to_frame().with_columns(pl.Series("count", there.sum(axis=1)))
    texts = lists.select(pl.col("choices").list.head(pl.col("count"))).to_series()
    return Choices(texts, pl.Series("answer", np.argmin(order, axis=1).astype(np.int64)))
