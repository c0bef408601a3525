"""What columns tell about each other: two that say the same, and one that is filled in only where another says so."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import polars as pl

from common.registry.drafting.look import ENOUGH, FEW_CODES, Seen, plain

MOST_ROWS = 5000
"""Rows that are looked at."""
SAME_ORDER = 0.98
"""Rank correlation from which two columns of numbers are taken for one."""


def note_relations(seen: Sequence[Seen], rows: pl.DataFrame) -> list[Seen]:
    """The columns with what their neighbours tell, as reasons for a person to judge.

    Args:
        rows: text, missing values null.
    """
    rows = rows.head(MOST_ROWS)
    notes: dict[str, list[str]] = {column.column: [] for column in seen}
    for first, second in doubles(seen, rows):
        notes[second].append(f"EDIT: says nearly the same as {first!r}: move one of the two to never")
    later = set()
    outcomes = {column.column for column in seen if column.outcome}
    for column, parent in dependent(seen, rows):
        if parent in outcomes:
            later.add(column)
            notes[column].append(f"EDIT: filled in only where {parent!r} says so: known later, it gives that away")
        else:
            notes[column].append(f"EDIT: filled in only where {parent!r} says so; does empty mean no? then clean.blank")
    return [
        replace(column, why=[*column.why, *notes[column.column]], outcome=column.outcome or column.column in later)
        for column in seen
    ]


def doubles(seen: Sequence[Seen], rows: pl.DataFrame) -> list[tuple[str, str]]:
    """Pairs of columns of numbers in the same order, or of categories that translate into each other."""
    numbers = {c.column: plain(rows[c.column], c.clean, c.unit) for c in seen if c.kind == "number"}
    ranked = pl.DataFrame({name: values.rank() for name, values in numbers.items()})
    same = [pair for pair in combinations(numbers, 2) if alike(ranked, *pair)]
    words = [c.column for c in seen if c.kind == "category"]
    return same + [pair for pair in combinations(words, 2) if one_to_one(rows, *pair)]


def alike(ranked: pl.DataFrame, first: str, second: str) -> bool:
    both = ranked.select(first, second).drop_nulls()
    found = both.select(pl.corr(first, second)).item()
    return both.height >= ENOUGH and found is not None and abs(found) >= SAME_ORDER


def one_to_one(rows: pl.DataFrame, first: str, second: str) -> bool:
    both = rows.select(first, second).drop_nulls()
    pairs = both.unique()
    if both.height < ENOUGH or pairs.height < 2:
        return False
    return pairs[first].n_unique() == pairs[second].n_unique() == pairs.height


def dependent(seen: Sequence[Seen], rows: pl.DataFrame) -> list[tuple[str, str]]:
    """(column, parent): every filled-in cell stands beside one value of the parent, which also has others."""
    parents = [c.column for c in seen if c.kind == "category" and 2 <= rows[c.column].n_unique() <= FEW_CODES]
    found = []
    for column in seen:
        filled = rows[column.column].is_not_null()
        if column.kind is None or filled.all() or filled.sum() < ENOUGH:
            continue
        for parent in parents:
            beside = rows[parent].filter(filled)
            if parent != column.column and beside.n_unique() == 1 and beside.null_count() == 0:
                found.append((column.column, parent))
    return found
