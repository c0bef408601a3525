"""Spellings that mean the same."""

import polars as pl

from common.registry.cleaning.declared import Clean, Words
from common.registry.cleaning.words import one_case, yes_no

WORDS = Words(yes=("yes", "Y", "1", "Ja"), no=("no", "N", "0"))
TEXT = pl.DataFrame({"x": ["Y", "JA", "1", "0", "No", "perhaps", None]})


def test_every_word_becomes_the_first_of_its_list() -> None:
    done = TEXT.select(yes_no(pl.col("x"), Clean(yes_no=True), WORDS))["x"].to_list()
    assert done == ["yes", "yes", "yes", "no", "no", None, None]


def test_a_word_that_is_neither_may_stay() -> None:
    done = TEXT.select(yes_no(pl.col("x"), Clean(yes_no=True, messy="keep"), WORDS))["x"].to_list()
    assert done == ["yes", "yes", "yes", "no", "no", "perhaps", None]


def test_values_that_differ_in_case_are_one() -> None:
    text = pl.DataFrame({"x": ["Lung", "LUNG", "lung", "ÜBER", None]})
    assert text.select(one_case(pl.col("x")))["x"].to_list() == ["lung", "lung", "lung", "über", None]
