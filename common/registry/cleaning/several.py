"""Cells that hold several codes: "1,3" becomes "a, b"."""

import polars as pl

from common.registry.cleaning.declared import Clean


def several_codes(column: pl.Expr, clean: Clean, values: dict[str, str]) -> pl.Expr:
    """Every code in the words of `values`, each once, in the order in which `values` lists them.

    A cell with an unlisted code becomes null, or keeps that code behind the others under `messy = "keep"`.
    """
    parts = column.str.split(clean.several).list.eval(pl.element().str.strip_chars())
    parts = parts.list.filter(pl.element() != "")
    printed = list(dict.fromkeys(values.values()))
    listed = [
        pl.when(parts.list.eval(pl.element().is_in([c for c, w in values.items() if w == word])).list.any()).then(
            pl.lit(word)
        )
        for word in printed
    ]
    unknown = parts.list.filter(~pl.element().is_in(list(values))).list.unique().list.sort()
    if clean.messy == "keep":
        words = pl.concat_list(*listed, unknown).list.drop_nulls()
        return pl.when(words.list.len() > 0).then(words.list.join(", ")).name.keep()
    words = pl.concat_list(*listed).list.drop_nulls()
    return pl.when((words.list.len() > 0) & (unknown.list.len() == 0)).then(words.list.join(", ")).name.keep()
