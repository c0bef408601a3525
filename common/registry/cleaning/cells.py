"""One declared column as text: marks for missing values, empty cells that mean something, flags of what does not
apply, date and time joined."""

import polars as pl

from common.registry.cleaning.blanks import fill_blank
from common.registry.cleaning.date_time import join_time
from common.registry.config import Feature, RegistryConfig


def without(column: str, missing: tuple[str, ...]) -> pl.Expr:
    """The column with the marks for missing values turned into nulls; nothing at all always is one."""
    return pl.when(~pl.col(column).is_in(["", *missing])).then(pl.col(column)).alias(column)


def beside(feature: Feature) -> list[str]:
    """The other columns that this feature's cleaning reads."""
    blank = feature.clean.blank
    flag = feature.clean.not_applicable
    return [c for c in (blank.where if blank else "", flag.where if flag else "", feature.clean.time) if c]


def cell(feature: Feature, config: RegistryConfig) -> pl.Expr:
    """The feature's column, named after it."""
    column = without(feature.column, config.table.missing + feature.missing)
    blank = feature.clean.blank
    if blank is not None:
        marks = next((f.missing for f in config.features if f.column == blank.where), ())
        column = fill_blank(column, blank, without(blank.where, config.table.missing + marks))
    flag = feature.clean.not_applicable
    if flag is not None:
        other = pl.lit(flag.means or None, dtype=pl.String)
        column = pl.when(pl.col(flag.where).is_in(list(flag.answers)).fill_null(False)).then(other).otherwise(column)
    if feature.clean.time:
        column = join_time(column, without(feature.clean.time, config.table.missing))
    return column.alias(feature.column)
