"""Empty cells that say something: a box that nobody ticked."""

import polars as pl

from common.registry.cleaning.declared import Blank


def fill_blank(column: pl.Expr, blank: Blank, parent: pl.Expr) -> pl.Expr:
    """`means` where the parent question says that this one applies, `otherwise` where it says that it does not.

    Where the parent has no answer, an empty cell stays missing.
    """
    applies = parent.is_in(list(blank.answers))
    other = pl.lit(blank.otherwise or None, dtype=pl.String)
    filled = pl.when(applies).then(pl.lit(blank.means)).when(parent.is_not_null()).then(other)
    return pl.when(column.is_not_null()).then(column).otherwise(filled)
