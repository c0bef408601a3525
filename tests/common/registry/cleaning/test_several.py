"""Several codes in one cell."""

import polars as pl

from common.registry.cleaning.declared import Clean
from common.registry.cleaning.several import several_codes

VALUES = {"1": "fever", "2": "cough", "3": "rash", "33": "rash"}
TEXT = pl.DataFrame({"x": ["1,3", "3, 1", "2", "1,1", "33,3", "1,9", "9", ",", "13", None]})


def read(messy: str) -> list[str | None]:
    clean = Clean.model_validate({"several": ",", "messy": messy})
    return TEXT.select(several_codes(pl.col("x"), clean, VALUES))["x"].to_list()


def test_codes_become_words_in_the_declared_order() -> None:
    expected = ["fever, rash", "fever, rash", "cough", "fever", "rash", None, None, None, None, None]
    assert read("refuse") == read("missing") == expected


def test_an_unlisted_code_may_stay() -> None:
    assert read("keep")[5:] == ["fever, 9", "9", None, "13", None]


def test_another_separator() -> None:
    done = pl.DataFrame({"x": ["1|2"]}).select(several_codes(pl.col("x"), Clean(several="|"), VALUES))
    assert done["x"].to_list() == ["fever, cough"]
