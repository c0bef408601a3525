"""How dates are written, and a date and its time of day from two columns that stand side by side."""

import polars as pl

from common.registry.cleaning.declared import Clean
from common.registry.cleaning.numbers import count_shapes

DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f",
)
SHAPES = (
    ("that no calendar has", r"^\d{4}[-/]\d\d?[-/]\d\d?([ T]|$)"),
    ("with the year last", r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}"),
    ("of digits alone", r"^\d+$"),
)
"""How dates are written that do not parse; the first that fits counts."""


def join_time(date: pl.Expr, time: pl.Expr) -> pl.Expr:
    """`YYYY-MM-DD HH:MM` as text. No time: the date alone. No date: nothing.

    Spreadsheets write midnight behind dates and a day of 1899 or 1900 before times; both are taken off.
    """
    day = date.str.replace(r"[ T]00:00(:00(\.0+)?)?$", "")
    hour = time.str.replace(r"^(1899-12-3[01]|1900-01-0[01])[ T]", "").str.replace(r"^(\d):", "0$1:")
    return pl.when(hour.is_null()).then(day).otherwise(day + " " + hour)


def date_formats(clean: Clean) -> tuple[str, ...]:
    if not clean.date_format:
        return DATE_FORMATS
    return (clean.date_format, *(f"{clean.date_format} {hour}" for hour in ("%H:%M", "%H:%M:%S%.f")), *DATE_FORMATS)


def date_shapes(text: pl.Series, parsed: pl.Series) -> list[tuple[str, int]]:
    """What the values look like that are lost between `text` and `parsed`, and how many do."""
    return count_shapes(text.filter(text.is_not_null() & parsed.is_null()), SHAPES)
