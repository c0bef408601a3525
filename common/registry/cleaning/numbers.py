"""Numbers as people write them: "1,200", "<0.01", "5.2 mmol/L"."""

import re
from collections.abc import Sequence

import polars as pl

from common.registry.cleaning.declared import Clean

SIGNS = r"^(?:<=|>=|<|>|≤|≥|~|=)\s*"
SHAPES = (
    ("with a comparison sign", rf"{SIGNS}[+-]?\d"),
    ("with a comma", r"^[+-]?\d+(?:[.,'\s]\d+)*,\d*$"),
    ("with a point", r"^[+-]?\d+(?:[.,'\s]\d+)*\.\d*$"),
    ("with text behind a number", r"^[+-]?\d"),
)
"""How numbers are written that do not parse; the first that fits counts."""


def plain_number(column: pl.Expr, clean: Clean, unit: str) -> pl.Expr:
    """Text that parses as a float where the declared writing allows it; other text stays and does not parse.

    Thousands must stand in groups of three ("1,20" is a slip, not 120). A unit is taken off only if it is the
    declared one or one of its spellings: 5 mg/dL are not 5 mmol/L.
    """
    text = column
    if clean.messy == "keep":
        units = sorted({re.escape(u) for u in (unit, *clean.units) if u}, key=len, reverse=True)
        text = text.str.replace(SIGNS, "")
        if units:
            text = text.str.replace(rf"(?i)(\d[.,]?)\s*(?:{'|'.join(units)})$", "$1")
    if not clean.thousands and clean.decimal == ".":
        return text
    point, mark = re.escape(clean.decimal), re.escape(clean.thousands)
    whole = rf"\d{{1,3}}(?:{mark}\d{{3}})+|\d+" if mark else r"\d+"
    written = text.str.contains(rf"^[+-]?(?:(?:{whole})(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$")
    read = text.str.replace_all(mark, "") if mark else text
    read = read.str.replace(clean.decimal, ".", literal=True)
    # Marked, so that "1.200" under a decimal comma does not pass for 1.2 after all.
    return pl.when(written).then(read).otherwise(pl.lit("not a number: ") + text)


def number_shapes(text: pl.Series, parsed: pl.Series) -> list[tuple[str, int]]:
    """What the values look like that are lost between `text` and `parsed`, and how many do."""
    return count_shapes(text.filter(text.is_not_null() & parsed.is_null()), SHAPES)


def count_shapes(lost: pl.Series, shapes: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """The values by the first pattern that fits them, the rest as other text; patterns that fit none are left out."""
    counts = []
    for name, pattern in shapes:
        fits = lost.str.contains(pattern)
        counts.append((name, int(fits.sum())))
        lost = lost.filter(~fits)
    return [(name, count) for name, count in [*counts, ("other text", lost.len())] if count]
