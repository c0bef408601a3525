"""What columns tell about each other."""

from typing import Any

import polars as pl
import pytest

from common.registry.drafting.look import Seen, look
from common.registry.drafting.together import note_relations

N = 60


def judged(**columns: list[Any]) -> dict[str, Seen]:
    rows = pl.DataFrame({name: [None if v is None else str(v) for v in values] for name, values in columns.items()})
    seen = [look(name, rows[name].drop_nulls()) for name in rows.columns]
    return {column.column: column for column in note_relations(seen, rows)}


def notes(seen: Seen) -> str:
    return " ".join(why for why in seen.why if why.startswith("EDIT: "))


def test_a_quantity_in_two_units_is_said_once() -> None:
    values = [5 + (n * 37 % N) / 10 for n in range(N)]
    seen = judged(crea=values, other=[n * 11 % N + 0.5 for n in range(N)], crea_si=[round(v * 88.4) for v in values])
    assert "the same as 'crea'" in notes(seen["crea_si"])
    assert "the same" not in notes(seen["crea"]) + notes(seen["other"])


def test_a_code_and_its_text_are_the_same_and_a_coarser_one_is_not() -> None:
    kinds = [("l", "lung", "organ"), ("k", "kidney", "organ"), ("s", "skin", "surface")]
    code, text, coarse = ([kinds[n % 3][place] for n in range(N)] for place in range(3))
    seen = judged(code=code, organ=text, coarse=coarse)
    assert "the same as 'code'" in notes(seen["organ"])
    assert "the same" not in notes(seen["coarse"])


def test_what_is_filled_in_only_after_an_outcome_becomes_known_with_it() -> None:
    died = ["y" if n % 2 else "n" for n in range(N)]
    cause = [("sepsis" if n % 4 == 1 else "stroke") if n % 2 else None for n in range(N)]
    seen = judged(died=died, cause=cause)
    assert seen["cause"].outcome and "'died'" in notes(seen["cause"])


@pytest.mark.parametrize("gap", [None, "x"])
def test_what_is_filled_in_only_beside_one_answer_is_a_conditional_blank(gap: str | None) -> None:
    dm = ["y" if n % 2 else "n" for n in range(N)]
    drug = [("metformin" if n % 4 == 1 else "insulin") if n % 2 else gap for n in range(N)]
    seen = judged(dm=dm, drug=drug)
    assert not seen["drug"].outcome and ("clean.blank" in notes(seen["drug"])) is (gap is None)
