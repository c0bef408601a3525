"""Boxes that nobody ticked."""

import polars as pl

from common.registry.cleaning.blanks import fill_blank
from common.registry.cleaning.declared import Blank

TABLE = pl.DataFrame({"parent": ["Y", "Y", "N", "N", None, None], "box": ["1", None, None, "1", None, "1"]})


def fill(otherwise: str) -> list[str | None]:
    blank = Blank(where="parent", answers=("Y",), means="0", otherwise=otherwise)
    return TABLE.select(fill_blank(pl.col("box"), blank, pl.col("parent")))["box"].to_list()


def test_an_empty_box_says_no_where_the_question_applies() -> None:
    assert fill("") == ["1", "0", None, "1", None, "1"]


def test_and_not_applicable_where_it_does_not() -> None:
    assert fill("n/a") == ["1", "0", "n/a", "1", None, "1"]
