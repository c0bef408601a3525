"""Mutual information between all pairs of columns by nearest neighbours: the estimator of the reference.

Two continuous columns: Kraskov, Stögbauer and Grassberger (2004); a continuous and a discrete one: Ross (2014); two
discrete ones: from their counts. All three are scikit-learn's, with its 3 neighbours. A column may be both, discrete
where it is missing (a class of its own) or holds a word, continuous where it holds a number. With D its class and X
its number, the chain rule splits the information of two such columns T and F exactly into

    I(T; F) = I(Dt; Df) + P(F is a number) I(Dt; Xf | F is a number)
              + P(T is a number) I(Xt; Df | T is a number) + P(both are) I(Xt; Xf | both are)

Slow, and counts of two sites do not add up; `information.py` has the estimator that `strict` uses.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.information import is_continuous
from common.questions.randomness import derive_seed
from common.registry.config import Feature

NEIGHBOURS = 3
MISSING, NUMBER = 0, 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Mixed(NamedTuple):
    """One column: `code` (0 missing, 1 a number, then one for each word), `number` (NaN unless the code is 1)."""

    code: Ints
    number: Floats


def mixed(column: pl.Series, feature: Feature, in_effect: str) -> Mixed:
    """A column as the estimator sees it. Dates are minutes from time zero, ordinal scales numbers.

    Args:
        in_effect: the kind that the codebook gives the column.
    """
    if not is_continuous(feature, column, in_effect):
        numbers = np.full(column.len(), np.nan)
    elif column.dtype.is_temporal():
        numbers = (column.dt.epoch("s").cast(pl.Float64) / 60).fill_null(float("nan")).to_numpy()
    else:
        numbers = column.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    words = column.rank("dense").fill_null(0).to_numpy().astype(np.int64) + NUMBER
    code = np.where(np.isfinite(numbers), NUMBER, words)
    return Mixed(np.where(column.is_null().to_numpy(), MISSING, code), numbers)


def all_pairs(columns: list[Mixed], seed: int) -> Floats:
    """`[target, other]`: information of `other` about `target`, over the rows where the target is present.

    Nats, shape (columns, columns); the diagonal is left 0. The estimate of a pair without missing values is the same
    in both directions and made once.
    """
    result = np.zeros((len(columns), len(columns)))
    whole = [bool((c.code != MISSING).all()) for c in columns]
    for i, target in enumerate(columns):
        rows = target.code != MISSING
        for j, other in enumerate(columns):
            if j < i and whole[i] and whole[j]:
                result[i, j] = result[j, i]
            elif i != j:
                pair = Mixed(target.code[rows], target.number[rows]), Mixed(other.code[rows], other.number[rows])
                result[i, j] = information(*pair, derive_seed(seed, f"{i}|{j}") % 2**32)
    return result


def information(target: Mixed, other: Mixed, seed: int) -> float:
    """Nats between two columns by the chain rule above; `seed` breaks ties between repeated numbers."""
    n = len(target.code)
    if n == 0:
        return 0.0
    t, f = target.code == NUMBER, other.code == NUMBER
    both = t & f
    total = discrete(target.code, other.code)
    total += f.sum() / n * one_continuous(target.code[f], other.number[f], seed)
    total += t.sum() / n * one_continuous(other.code[t], target.number[t], seed)
    return float(total + both.sum() / n * continuous(target.number[both], other.number[both], seed))


def discrete(a: Ints, b: Ints) -> float:
    if varies(a) and varies(b):
        from sklearn.metrics import mutual_info_score

        return float(mutual_info_score(a, b))
    return 0.0


def one_continuous(label: Ints, number: Floats, seed: int) -> float:
    """0 where fewer than two labels have the two members that a neighbour needs; such labels take no part."""
    _, place, members = np.unique(label, return_inverse=True, return_counts=True)
    paired = members[place] > 1
    label, number = label[paired], number[paired]
    if not varies(label) or not varies(number):
        return 0.0
    from sklearn.feature_selection import mutual_info_classif

    columns = number[:, None]
    return float(
        mutual_info_classif(columns, label, discrete_features=False, n_neighbors=NEIGHBOURS, random_state=seed)[0]
    )


def continuous(a: Floats, b: Floats, seed: int) -> float:
    """0 where there are too few rows to have three neighbours."""
    if not varies(a) or not varies(b) or len(a) <= NEIGHBOURS:
        return 0.0
    from sklearn.feature_selection import mutual_info_regression

    return float(
        mutual_info_regression(b[:, None], a, discrete_features=False, n_neighbors=NEIGHBOURS, random_state=seed)[0]
    )


def varies(values: Ints | Floats) -> bool:
    return len(values) > 0 and bool((values != values[0]).any())
