"""How a value is printed: the same way in the record, among the choices and in the codebook.

A number is counted in units of its last printed digit (an integer), so that a fixed number of decimals,
equality and arithmetic on printed values are exact.
"""

import polars as pl

from common.registry.config import Feature

AS_RECORDED = 15
"""As a column's decimals: every digit that its values have, and no more. What a Float64 holds for sure."""


def to_units(value: pl.Expr, decimals: int) -> pl.Expr:
    """Float64 -> Int64, in units of 10^-decimals."""
    return (value * 10.0**decimals).round().cast(pl.Int64)


def print_units(units: pl.Expr, decimals: int) -> pl.Expr:
    """Int64 units of 10^-decimals -> text with exactly that many decimals."""
    if decimals == 0:
        return units.cast(pl.String)
    size = units.abs()
    sign = pl.when(units < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    fraction = (size % 10**decimals).cast(pl.String).str.zfill(decimals)
    # concat_str is null where any part is, so a missing value stays missing.
    return pl.concat_str([sign, (size // 10**decimals).cast(pl.String), pl.lit("."), fraction])


def print_recorded(number: pl.Expr) -> pl.Expr:
    """Float64 -> the shortest text that reads back as the same number: 147, 7.3, 0.25."""
    # Adding 0 makes a negative zero a zero.
    return (number + 0.0).cast(pl.String).str.strip_suffix(".0")


def print_values(feature: Feature, decimals: int) -> pl.Expr:
    """A registry column as printed text; missing stays null.

    Args:
        decimals: of a number, or `AS_RECORDED`; for a date, 0 prints the day and anything else the minute.
    """
    column = pl.col(feature.column)
    if feature.kind == "number" and decimals == AS_RECORDED:
        return print_recorded(column)
    if feature.kind == "number":
        return print_units(to_units(column, decimals), decimals)
    if feature.kind == "date":
        return column.dt.strftime("%Y-%m-%d %H:%M" if decimals else "%Y-%m-%d")
    return column
