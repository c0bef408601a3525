"""Numbers as people write them: "1,200", "<0.01", "5.2 mmol/L"."""

import re

import polars as pl

from common.registry.cleaning.declared import Clean

SIGNS = r"^(?:<=|>=|<|>|≤|≥|~|=)\s*"


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
