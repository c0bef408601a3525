"""Numbers as people write them, by hand and at random."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.registry.cleaning.declared import Clean
from common.registry.cleaning.numbers import plain_number


def read(texts: list[str | None], unit: str = "", **clean) -> list[float | None]:
    frame = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    return frame.select(plain_number(pl.col("x"), Clean(**clean), unit).cast(pl.Float64, strict=False))["x"].to_list()


def test_nothing_is_repaired_that_is_not_declared() -> None:
    assert read(["5", "1e3", "<0.01", "1,200", "5 kg", None], "kg") == [5.0, 1000.0, None, None, None, None]


def test_signs_and_the_declared_unit_are_taken_off() -> None:
    texts = ["<0.01", "> 5", "≤7", ">=8.5", "~3", "12 mmol/L", "12mmol/l", "<3 mM", "-4"]
    expected = [0.01, 5.0, 7.0, 8.5, 3.0, 12.0, 12.0, 3.0, -4.0]
    assert read(texts, "mmol/L", messy="keep", units=("mM",)) == expected


def test_another_unit_is_not_the_declared_one() -> None:
    assert read(["5 mg/dL", "5 mmol/L/h", "mmol/L", "5 6", "<", "<<5"], "mmol/L", messy="keep") == [None] * 6


@pytest.mark.parametrize(
    ("clean", "text", "value"),
    [
        ({"thousands": ","}, "1,200", 1200.0),
        ({"thousands": ","}, "1,234,567.5", 1234567.5),
        ({"thousands": ","}, "1200.5", 1200.5),
        ({"thousands": ","}, "1,20", None),
        ({"thousands": ","}, "12,3456", None),
        ({"thousands": ","}, ",200", None),
        ({"decimal": ","}, "61,5", 61.5),
        ({"decimal": ","}, "-,5", -0.5),
        ({"decimal": ","}, "1.200", None),
        ({"decimal": ",", "thousands": "."}, "1.200,5", 1200.5),
        ({"decimal": ",", "thousands": "."}, "1,200.5", None),
        ({"thousands": " "}, "1 200", 1200.0),
        ({"thousands": "'"}, "1'200", 1200.0),
        ({"thousands": ",", "messy": "keep"}, "<1,200 ng", 1200.0),
        ({"decimal": ",", "messy": "keep"}, "<0,01ng", 0.01),
    ],
)
def test_thousands_and_decimals_are_read_as_declared(clean: dict[str, str], text: str, value: float | None) -> None:
    assert read([text], "ng", **clean) == [value]


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.sampled_from([(",", "."), (".", ","), (" ", ",")]))
def test_whatever_is_printed_is_read_back(thousandths: list[int], marks: tuple[str, str]) -> None:
    thousands, decimal = marks
    printed = [f"{n / 1000:,.3f}".translate({44: thousands, 46: decimal}) for n in thousandths]
    assert read(printed, thousands=thousands, decimal=decimal) == [n / 1000 for n in thousandths]


@given(st.text(alphabet="0123456789,. '<>-+kg", max_size=12))
def test_a_value_read_without_policy_reads_the_same_under_keep(text: str) -> None:
    strict, kept = read([text], "kg"), read([text], "kg", messy="keep")
    assert strict == [None] or strict == kept
