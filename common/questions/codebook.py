"""What a site knows about its columns before it asks anything: fitted on training patients only.

The rules are those of C-Reason (arXiv 2505.02722) as method.md describes them, with the `strict` repairs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import UserError
from common.questions.information import all_pairs, bins_for, classes, is_continuous
from common.questions.printing import print_units, print_values, to_units
from common.questions.variables import as_quantities, pooled, quantities, stacked
from common.registry.config import Feature
from common.study import Questions

MOST_CATEGORIES = 20
MOST_SUPPORT = 1000
GRAINS = (1000, 500, 200, 100, 50, 20, 10, 5, 2)
MOST_DECIMALS = 3
PRINTED_EXACTLY = 0.9
"""A column prints with the fewest decimals that show this share of its values as they are."""


@dataclass(frozen=True)
class Component:
    """One Gaussian of a mixture, in the column's own unit."""

    weight: float
    mean: float
    sd: float


@dataclass(frozen=True)
class Column:
    """Statistics of one quantity among the training patients: of a feature, or of all columns of a variable.

    `column` is the feature's column or the variable's name. `kind` is the kind in effect: a number with at most 20
    distinct printed values is a category.
    `values` are printed values, the most frequent first, with their `counts`: of a category all of them, and of a
    number as well unless they are over 1,000; then 1,000 rows spread evenly over the sorted ones stand for all
    (all of them under `paper`). `decimals` are printed of a number; of a date, 1 means that it has a time of day.
    `grain` is the multiple of the last printed digit in which most values are noted (blood pressures come in tens).
    The mixture and the two shares are statistics of `paper` alone.
    """

    column: str
    kind: Literal["category", "number", "date", "text"]
    maskable: bool
    values: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    decimals: int = 0
    grain: int = 1
    mixture: tuple[Component, ...] = ()
    float_ratio: float = 0.0
    share_nonnegative: float = 0.0
    share_whole: float = 0.0


@dataclass(frozen=True)
class Codebook:
    """`columns` by quantity (`Feature.quantity`), in registry order; `excluded` names, for a masked quantity, those
    left out of its prompt."""

    columns: dict[str, Column]
    excluded: dict[str, tuple[str, ...]]
    mi_threshold: float

    def of(self, feature: Feature) -> Column:
        return self.columns[feature.quantity]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and tables without nulls, ready for TOML or JSON."""
        return {
            "mi_threshold": self.mi_threshold,
            "columns": [jsonable(asdict(c)) for c in self.columns.values()],
            "excluded": {target: list(others) for target, others in self.excluded.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Codebook":
        columns = [
            Column(
                **{
                    **c,
                    "values": tuple(c["values"]),
                    "counts": tuple(c["counts"]),
                    "mixture": tuple(Component(**m) for m in c["mixture"]),
                }
            )
            for c in values["columns"]
        ]
        excluded = {target: tuple(others) for target, others in values["excluded"].items()}
        return cls({c.column: c for c in columns}, excluded, values["mi_threshold"])

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def rows_to_fit(frame: pl.DataFrame, training: Sequence[str], spec: Questions) -> pl.DataFrame:
    """The training patients' rows; under `paper` every row, test patients included, as the reference has it."""
    return frame if spec.fidelity == "paper" else frame.filter(pl.col("patient").is_in(training))


def fit_codebook(frame: pl.DataFrame, features: Sequence[Feature], spec: Questions, seed: int) -> Codebook:
    """Fit column statistics and the shortcut filter.

    Args:
        frame: rows of TRAINING patients only, one column per feature (of all patients under `paper`).
        seed: of the mixtures' starting points and of broken ties under `paper`; `strict` draws nothing.

    Raises:
        UserError: no rows.
    """
    if frame.is_empty():
        raise UserError(
            "There are no training patients to fit the question statistics on.",
            "Lower questions.test_fraction or give the site more patients.",
        )
    if spec.fidelity == "paper":
        # It is made of this module's parts.
        from common.questions.paper_codebook import fit_paper

        return fit_paper(frame, features, spec, seed)
    values = pooled(frame, features)
    columns = {q.column: fit_column(values[q.column], q) for q in as_quantities(features)}
    nats = binned_pairs(frame, features, columns)
    return Codebook(columns, shortcuts(nats, columns, spec.mi_threshold), spec.mi_threshold)


def binned_pairs(
    frame: pl.DataFrame, features: Sequence[Feature], columns: Mapping[str, Column]
) -> NDArray[np.float64]:
    """`[target, other]` in nats, by counts of quantile bins, in the order of the quantities (variables.py)."""
    named = as_quantities(features)
    nats = binned_columns(stacked(frame, features), named, columns)
    alone = [place for place, measured in enumerate(quantities(features).values()) if not measured[0].variable]
    if len(alone) < len(named):
        nats[np.ix_(alone, alone)] = binned_columns(frame, [named[place] for place in alone], columns)
    return nats


def binned_columns(
    frame: pl.DataFrame, features: Sequence[Feature], columns: Mapping[str, Column]
) -> NDArray[np.float64]:
    """`[target, other]` in nats between the features' columns."""
    bins = bins_for(frame.height)
    coded = [
        classes(frame[f.column], is_continuous(f, frame[f.column], columns[f.column].kind), bins) for f in features
    ]
    return all_pairs([codes for codes, _ in coded], [size for _, size in coded])


def shortcuts(nats: NDArray[np.float64], columns: Mapping[str, Column], threshold: float) -> dict[str, tuple[str, ...]]:
    """For each maskable quantity those that hold more than `threshold` nats about it; `nats` is [target, other]."""
    names = list(columns)
    excluded = {
        target: tuple(names[j] for j in np.flatnonzero(nats[i] > threshold))
        for i, target in enumerate(names)
        if columns[target].maskable
    }
    return {target: others for target, others in excluded.items() if others}


def fit_column(column: pl.Series, feature: Feature) -> Column:
    present = column.drop_nulls()
    if feature.kind == "number":
        return fit_number(present, feature)
    if feature.kind == "date":
        clock = bool((present.dt.truncate("1d") != present).any())
        return Column(feature.column, "date", maskable=False, decimals=int(clock))
    values, counts = frequencies(present)
    if feature.kind == "text" or len(values) > MOST_CATEGORIES:
        return Column(feature.column, "text", maskable=False)
    return Column(feature.column, "category", len(values) > 1, values, counts)


def fit_number(present: pl.Series, feature: Feature) -> Column:
    if present.is_empty():
        return Column(feature.column, "number", maskable=False)
    numbers = present.to_numpy()
    decimals = decimals_to_print(numbers)
    printed = present.to_frame().select(print_values(feature, decimals)).to_series()
    values, counts = frequencies(printed)
    if len(values) <= MOST_CATEGORIES:
        return Column(feature.column, "category", len(values) > 1, values, counts, decimals=decimals)
    values, counts = support(unit_counts(present, decimals), decimals)
    grain = coarseness(np.round(numbers * 10.0**decimals))
    return Column(feature.column, "number", True, values, counts, decimals=decimals, grain=grain, float_ratio=1.0)


def frequencies(printed: pl.Series) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Distinct values and how often each stands, the most frequent first, then by text."""
    return ranked(printed.alias("value").to_frame().group_by("value").len())


def ranked(table: pl.DataFrame) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """`value` and `len`, the most frequent first, then by text."""
    table = table.sort("len", "value", descending=[True, False])
    return tuple(table["value"]), tuple(table["len"])


def unit_counts(present: pl.Series, decimals: int) -> pl.DataFrame:
    """Distinct printed numbers, as `units` of the last decimal, and `len`, how many rows have each."""
    return present.to_frame("units").select(to_units(pl.col("units"), decimals)).group_by("units").len()


def support(table: pl.DataFrame, decimals: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Printed values and their counts from `unit_counts`; over 1,000, those of 1,000 evenly spaced sorted rows."""
    if table.height > MOST_SUPPORT:
        table = table.sort("units")
        upto = table["len"].cum_sum().to_numpy()
        places = ((np.arange(MOST_SUPPORT) + 0.5) * upto[-1] / MOST_SUPPORT).astype(int)
        table = table[np.searchsorted(upto, places, side="right")].select("units").group_by("units").len()
    table = table.sort("len", "units", descending=[True, False])
    printed = table.select(print_units(pl.col("units"), decimals)).to_series()
    return tuple(printed), tuple(table["len"])


def decimals_to_print(numbers: NDArray[np.float64]) -> int:
    """0 where at least 90 % are whole, else as few as print 90 % of the values exactly, at most 3.

    Values with long tails of digits (converted units) get the decimals that show two digits of their
    standard deviation.
    """
    if numbers.min() == numbers.max():
        return MOST_DECIMALS if (numbers % 1).any() else 0
    for decimals in range(MOST_DECIMALS + 1):
        if np.mean(shown_exactly(numbers, decimals)) >= PRINTED_EXACTLY:
            return decimals
    return decimals_of_spread(numbers.std())


def shown_exactly(numbers: NDArray[np.float64], decimals: int) -> NDArray[np.bool_]:
    """Whether so many decimals show each number as it is, shape (n,)."""
    scaled = numbers * 10.0**decimals
    return np.abs(scaled - np.round(scaled)) < np.maximum(1e-6, 1e-12 * np.abs(scaled))


def decimals_of_spread(sd: float) -> int:
    """As many as show two digits of a standard deviation above 0, at most 3."""
    return int(np.clip(1 - np.floor(np.log10(sd)), 0, MOST_DECIMALS))


def coarseness(units: NDArray[np.float64]) -> int:
    """The grain of values in units of their last printed digit; 0 says nothing."""
    units = units[units != 0]
    return grain_of({grain: float(np.mean(units % grain == 0)) for grain in GRAINS})


def grain_of(multiples: Mapping[int, float]) -> int:
    """The largest of `GRAINS` of which far more values are multiples than chance has it, else 1.

    Args:
        multiples: of each grain, the share of the values that are multiples.
    """
    return next((grain for grain in GRAINS if multiples[grain] >= (1 + 1 / grain) / 2), 1)
