"""A date and its time of day from two columns that stand side by side."""

import polars as pl


def join_time(date: pl.Expr, time: pl.Expr) -> pl.Expr:
    """`YYYY-MM-DD HH:MM` as text. No time: the date alone. No date: nothing.

    Spreadsheets write midnight behind dates and a day of 1899 or 1900 before times; both are taken off.
    """
    day = date.str.replace(r"[ T]00:00(:00(\.0+)?)?$", "")
    hour = time.str.replace(r"^(1899-12-3[01]|1900-01-0[01])[ T]", "").str.replace(r"^(\d):", "0$1:")
    return pl.when(hour.is_null()).then(day).otherwise(day + " " + hour)
