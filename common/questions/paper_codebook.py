"""Column statistics and shortcut filter as the C-Reason reference has them (method.md, section 1).

What differs from `strict`: values stay as they are recorded, a category that holds numbers is told by its values,
numbers get a mixture of Gaussians, every distinct number is kept, and information is estimated by nearest
neighbours. The caller passes the rows of ALL patients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.codebook import (
    MOST_CATEGORIES,
    Codebook,
    Column,
    Component,
    fit_column,
    frequencies,
    shortcuts,
)
from common.questions.neighbours import all_pairs, mixed
from common.questions.printing import AS_RECORDED, print_values
from common.questions.randomness import derive_seed
from common.questions.variables import as_quantities, pooled, quantities
from common.registry.config import Feature
from common.study import Questions

COMPONENTS = 3
DIGITS = 9
"""Significant digits of fitted parameters: the last bits of a sum may differ with the number of threads."""


def fit_paper(frame: pl.DataFrame, features: Sequence[Feature], spec: Questions, seed: int) -> Codebook:
    """Args: frame: rows of all patients, not empty; seed: of the mixtures' starting points and of broken ties."""
    values = pooled(frame, features)
    columns = {q.column: fit_recorded(values[q.column], q, seed) for q in as_quantities(features)}
    # The reference has no shortcut filter for hourly tables.
    alone = [f for f in features if not f.variable]
    places = [place for place, measured in enumerate(quantities(features).values()) if not measured[0].variable]
    nats = np.zeros((len(columns), len(columns)))
    nats[np.ix_(places, places)] = neighbour_pairs(frame, alone, columns, seed)
    return Codebook(columns, shortcuts(nats, columns, spec.mi_threshold), spec.mi_threshold)


def neighbour_pairs(
    frame: pl.DataFrame, features: Sequence[Feature], columns: Mapping[str, Column], seed: int
) -> NDArray[np.float64]:
    """`[target, other]` in nats, by nearest neighbours, in the order of `features`."""
    seen = [mixed(frame[f.column], f, columns[f.column].kind) for f in features]
    return all_pairs(seen, derive_seed(seed, "neighbours"))


def fit_recorded(column: pl.Series, feature: Feature, seed: int) -> Column:
    """Dates and declared free text are never asked; of the rest, the values say what the column is.

    At most 20 distinct numbers are categories, whatever stands beside them; more than 20 distinct other texts are
    free text. `float_ratio` is the share of numbers among the distinct values, 0 where numbers are categories.
    """
    if feature.kind in ("date", "text"):
        return fit_column(column, feature)
    recorded = column.drop_nulls().to_frame().select(print_values(feature, AS_RECORDED)).to_series()
    values, counts = frequencies(recorded)
    numbers = as_numbers(recorded)
    distinct_numbers = int(numbers.filter(~numbers.is_nan()).n_unique())
    distinct_texts = int(recorded.filter(numbers.is_nan()).n_unique())
    present = numbers.filter(~numbers.is_nan()).to_numpy()
    decimals = AS_RECORDED if feature.kind == "number" else 0
    if distinct_texts > MOST_CATEGORIES:
        return Column(feature.column, "text", maskable=False)
    if distinct_numbers <= MOST_CATEGORIES:
        return Column(feature.column, "category", len(values) > 1, values, counts, decimals=decimals)
    return Column(
        feature.column,
        "number",
        True,
        values,
        counts,
        decimals=decimals,
        mixture=fit_raw_mixture(present, derive_seed(seed, f"mixture|{feature.column}")),
        float_ratio=significant(distinct_numbers / len(values)),
        share_nonnegative=significant(np.mean(present >= 0)),
        share_whole=significant(np.mean(present == np.round(present))),
    )


def as_numbers(texts: pl.Series) -> pl.Series:
    """Float64 without nulls; NaN where a text is not a finite number."""
    numbers = texts.cast(pl.Float64, strict=False).to_numpy()
    return pl.Series(texts.name, np.where(np.isfinite(numbers), numbers, np.nan))


def fit_raw_mixture(numbers: NDArray[np.float64], seed: int) -> tuple[Component, ...]:
    """Three Gaussians on the numbers as they are, in the order of their means."""
    from sklearn.mixture import GaussianMixture  # two seconds, for studies of this kind alone

    model = GaussianMixture(COMPONENTS, random_state=seed % 2**32).fit(numbers[:, None])
    parts = zip(model.weights_, model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0]), strict=True)
    ordered = sorted(parts, key=lambda part: float(part[1]))
    return tuple(Component(significant(w), significant(m), significant(s)) for w, m, s in ordered)


def significant(number: float | np.floating[Any]) -> float:
    return float(f"{float(number):.{DIGITS}g}")
