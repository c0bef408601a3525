"""Categories that are one value in several spellings: case, and yes and no."""

import polars as pl

from common.registry.cleaning.declared import Clean, Words


def yes_no(column: pl.Expr, clean: Clean, words: Words) -> pl.Expr:
    """The first of the site's words for yes or no; what is neither becomes null, or stays under `messy = "keep"`."""
    known = {w.lower(): words.yes[0] for w in words.yes} | {w.lower(): words.no[0] for w in words.no}
    other = column if clean.messy == "keep" else None
    return column.str.to_lowercase().replace_strict(known, default=other, return_dtype=pl.String)


def one_case(column: pl.Expr) -> pl.Expr:
    """Lower case, and not the most frequent spelling: that would differ between sites."""
    return column.str.to_lowercase()
