"""Columns of one quantity, measured at several times (`Feature.variable`), as the one thing they are.

An hourly table has a column for each variable and time window. The codebook has ONE entry for a variable: its columns
hold the same quantity in the same unit, so they are printed alike and their statistics are those of all values
together. A feature without a variable is a quantity of one column.

Mutual information between two quantities is that of values taken at the same time (their columns stand in one
section): every record counts once for each time. What holds between columns of different times follows from that and
from how a quantity goes on in time, and testing all pairs of columns would multiply both the work and the tests by
the square of the number of times. A quantity of one column is the same at all times. Repeated, its rows are not
independent; so two such quantities are compared over the records as they are.
"""

from collections.abc import Sequence

import polars as pl

from common.registry.config import Feature


def quantities(features: Sequence[Feature]) -> dict[str, list[Feature]]:
    """Name -> its columns, in the order of their first column."""
    found: dict[str, list[Feature]] = {}
    for feature in features:
        found.setdefault(feature.quantity, []).append(feature)
    return found


def as_quantities(features: Sequence[Feature]) -> list[Feature]:
    """One feature for each quantity, whose column carries the quantity's name."""
    return [
        measured[0].model_copy(update={"column": name, "variable": ""})
        for name, measured in quantities(features).items()
    ]


def pooled(frame: pl.DataFrame, features: Sequence[Feature]) -> dict[str, pl.Series]:
    """Name -> all values of the quantity, one time after the other."""
    return {
        name: pl.concat([frame[f.column].alias(name) for f in measured])
        for name, measured in quantities(features).items()
    }


def stacked(frame: pl.DataFrame, features: Sequence[Feature]) -> pl.DataFrame:
    """One row for each record and time, one column for each quantity, null where it was not measured then.

    A time is a section that holds columns of variables; without any, the records as they are.
    """
    names = quantities(features)
    times = list(dict.fromkeys(f.section for f in features if f.variable))
    if not times:
        return frame.select(list(names))
    parts = []
    for time in times:
        columns = []
        for name, measured in names.items():
            then = [f.column for f in measured if not f.variable or f.section == time]
            nothing = pl.lit(None, dtype=frame.schema[measured[0].column])
            columns.append((pl.col(then[0]) if then else nothing).alias(name))
        parts.append(frame.select(columns))
    return pl.concat(parts)
