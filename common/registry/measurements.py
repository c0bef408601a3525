"""Tables with one row for each stay and time: read lazily with the types they have, and checked before use."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.cleaning.cells import without
from common.registry.cleaning.date_time import DATE_FORMATS
from common.registry.config import Table
from common.registry.hourly_config import HOURS, Rows, Variable
from common.registry.readers import first_bytes, read_table

STAY, TIME = "#stay", "#time"
"""The columns that every table of measurements has here: the stay as text, hours since the stay's start."""
MICROSECONDS = 3.6e9
"""In one hour."""


def read_rows(rows: Rows, columns: Sequence[str], stays: pl.DataFrame, earliest: float) -> pl.LazyFrame:
    """`STAY`, `TIME` and the `columns`, those of a text file still as text.

    Args:
        stays: `STAY` and, if `rows.start` is given, that column; one row for each stay of the stays' table.

    Raises:
        UserError: no such file or column; rows without stay or time, from before `earliest`, of a stay that is not in
            the stays' table, or two of one stay and time.
    """
    raw = scan(rows)
    schema = raw.collect_schema()
    missing = sorted({rows.stay, rows.time, *columns} - set(schema.names()))
    if missing:
        names = ", ".join(repr(column) for column in missing)
        raise UserError(f"{rows.path}: there is no column {names}.", "Correct the column in [hourly].")
    texts = [without(c, rows.missing) for c, dtype in schema.items() if dtype == pl.String]
    raw = raw.with_columns(pl.col(pl.String).str.strip_chars()).with_columns(texts)
    stay = as_text(pl.col(rows.stay), schema[rows.stay]).alias(STAY)
    time = hours(pl.col(rows.time), schema[rows.time], rows)
    kept = raw.select(stay, time.alias(TIME), pl.col(rows.time).is_null().alias("#no time"), *columns)
    if rows.start:
        start = hours(pl.col(rows.start), stays.schema[rows.start], rows).alias("#start")
        kept = kept.join(stays.lazy().select(STAY, start), on=STAY, how="left", maintain_order="left")
        # Milliseconds: the difference of two large numbers must not put a row on the wrong side of a full hour.
        kept = kept.with_columns((pl.col(TIME) - pl.col("#start")).round(6))
    check_rows(kept, stays, rows, earliest)
    return kept.select(STAY, TIME, *columns)


def scan(rows: Rows) -> pl.LazyFrame:
    if rows.source == "csv":
        return read_table(Table(source="csv", path=rows.path, get=rows.get, delimiter=rows.delimiter))
    path = Path(rows.path)
    first_bytes(path, rows.get)
    lazy = pl.scan_parquet(path)
    try:
        lazy.collect_schema()
    except pl.exceptions.ComputeError:
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one.", "Export the table again, or correct the source."
        ) from None
    return lazy


def as_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """An identifier, without the ".0" that a table with gaps gives to whole numbers."""
    return (column.cast(pl.Int64, strict=False) if dtype.is_float() else column).cast(pl.String)


def hours(column: pl.Expr, dtype: pl.DataType, rows: Rows) -> pl.Expr:
    """A length of time, a date with time (since 1970) or a number of `rows.time_unit`, in hours; null if it is none."""
    if dtype == pl.Duration:
        return column.dt.total_microseconds() / MICROSECONDS
    if isinstance(dtype, pl.Datetime):
        return column.dt.epoch("us") / MICROSECONDS
    counted = column.cast(pl.Float64, strict=False) * HOURS[rows.time_unit]
    if dtype != pl.String or not rows.start:
        return counted
    dates = [column.str.to_datetime(form, strict=False, time_unit="us") for form in DATE_FORMATS]
    return pl.coalesce(counted, pl.coalesce(dates).dt.epoch("us") / MICROSECONDS)


def check_rows(kept: pl.LazyFrame, stays: pl.DataFrame, rows: Rows, earliest: float) -> None:
    known = pl.col(STAY).is_in(stays[STAY].to_list())
    found = kept.select(
        pl.len().alias("rows"),
        pl.col(STAY).is_null().sum().alias("nobody"),
        pl.col(STAY).filter(~known).n_unique().alias("unknown"),
        pl.col("#no time").sum().alias("no time"),
        (pl.col(TIME).is_null() & known & ~pl.col("#no time")).sum().alias("odd"),
        (pl.col(TIME) < earliest).sum().alias("early"),
        (pl.len() - pl.struct(STAY, TIME).n_unique()).alias("twice"),
    ).collect()
    count = found.row(0, named=True)
    total = count["rows"]
    faults = {
        "nobody": (f"the column {rows.stay!r} is empty in {{}} of {total} rows", "Fill it in, or drop those rows."),
        "unknown": (
            f"{{}} stays of the column {rows.stay!r} are not in the table of stays",
            "Correct hourly.stay, or export both tables again together.",
        ),
        "no time": (f"the time {rows.time!r} is empty in {{}} of {total} rows", "Fill it in, or drop those rows."),
        "odd": (
            f"{{}} of {total} values of the time {rows.time!r} cannot be read",
            "Write a number, a length of time, or a date as YYYY-MM-DD HH:MM together with `start`.",
        ),
        "early": (
            f"{{}} of {total} rows are from before hour {earliest:g}",
            "Correct time_unit or start, or set hourly.earliest.",
        ),
        "twice": (f"{{}} of {total} rows repeat a stay and time", "Keep one row for each stay and time."),
    }
    for name, (what, remedy) in faults.items():
        if count[name]:
            raise UserError(f"{rows.path}: {what.format(count[name])}.", remedy)


def read_measurements(rows: Rows, variables: Sequence[Variable], stays: pl.DataFrame, earliest: float) -> pl.LazyFrame:
    """`STAY`, `TIME` and one Float64 column for each variable; what is not plausible is null.

    Raises:
        UserError: as `read_rows`; a column holds something else than numbers, or its median is not `typical`.
    """
    raw = read_rows(rows, [v.column for v in variables], stays, earliest)
    schema = raw.collect_schema()
    for variable in variables:
        if schema[variable.column].is_nested() or schema[variable.column].is_temporal():
            raise UserError(f"{rows.path}: the column {variable.column!r} is not of numbers.", "Remove the variable.")
    parsed = raw.with_columns(finite(v.column) for v in variables)
    lost = raw.select(
        (pl.col(v.column).is_not_null() & pl.col(v.column).cast(pl.Float64, strict=False).is_null()).sum()
        for v in variables
    ).collect()
    for column, count in lost.row(0, named=True).items():
        if count:
            raise UserError(
                f"{rows.path}: {count} values of the column {column!r} are not numbers.",
                "Export numbers alone, or add marks for missing values to the table's `missing`.",
            )
    check_typical(parsed, variables, rows.path)
    return plausible(parsed, variables)


def finite(column: str) -> pl.Expr:
    value = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value).alias(column)


def plausible(measured: pl.LazyFrame, variables: Sequence[Variable]) -> pl.LazyFrame:
    """Values outside a variable's plausible range become null."""
    ranges = [(v.column, *v.plausible) for v in variables if v.plausible]
    return measured.with_columns(
        pl.when(pl.col(column).is_between(low, high)).then(pl.col(column)).alias(column) for column, low, high in ranges
    )


def check_typical(measured: pl.LazyFrame, variables: Sequence[Variable], source: str) -> None:
    """Refuse a table in other units than declared; the median itself is not told.

    Raises:
        UserError: a column's median is not `typical`.
    """
    ranges = {v.column: v.typical for v in variables if v.typical}
    if not ranges:
        return
    medians = measured.select(pl.col(column).median() for column in ranges).collect().row(0, named=True)
    for column, (low, high) in ranges.items():
        if medians[column] is not None and not low <= medians[column] <= high:
            raise UserError(
                f"{source}: the median of the column {column!r} is not between {low:g} and {high:g}.",
                "The table is in other units, or normalised: give the one with the values as they were measured.",
            )


def summed(values: pl.Expr, variable: Variable) -> pl.Expr:
    """The variable's one value for several that stand in the order of time, as its rule says; null for none."""
    present = values.drop_nulls()
    rules = {
        "last": present.last(),
        "mean": present.mean(),
        "min": present.min(),
        "max": present.max(),
        # An empty sum is 0, which nobody measured.
        "sum": pl.when(present.len() > 0).then(present.sum()),
    }
    return rules[variable.aggregate]
