"""Information by nearest neighbours, where the answer is known."""

import datetime

import numpy as np
import polars as pl
import pytest

from common.questions.neighbours import MISSING, NUMBER, all_pairs, mixed
from common.registry.config import Feature


def feature(kind: str, ordinal: bool = False) -> Feature:
    return Feature(column="x", name="X", section="S", kind=kind, ordinal=ordinal)


def nats(target: pl.Series, other: pl.Series, kinds: tuple[str, str]) -> float:
    columns = [mixed(s, feature(k), k) for s, k in zip((target, other), kinds, strict=True)]
    return float(all_pairs(columns, 1)[0, 1])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_a_gaussian_pair_has_its_known_information(rho: float) -> None:
    """-1/2 ln(1 - rho^2): 0 at 0, 0.144 at 0.5, 0.830 at 0.9."""
    x, e = np.random.default_rng(1).normal(size=(2, 1500))
    found = nats(pl.Series(x), pl.Series(rho * x + np.sqrt(1 - rho**2) * e), ("number", "number"))
    assert found == pytest.approx(-0.5 * np.log(1 - rho**2), abs=0.08)


def test_two_categories_have_the_information_of_their_table() -> None:
    """40, 10 / 10, 40 of 100: H = ln 2 - (-0.8 ln 0.8 - 0.2 ln 0.2) = 0.6931 - 0.5004 = 0.1927."""
    target = pl.Series(["a"] * 50 + ["b"] * 50)
    other = pl.Series(["u"] * 40 + ["v"] * 10 + ["u"] * 10 + ["v"] * 40)
    assert nats(target, other, ("category", "category")) == pytest.approx(0.1927, abs=1e-4)


def test_a_threshold_holds_the_entropy_of_its_class() -> None:
    """Half of a uniform column is `high`: ln 2 = 0.693 nats, in both directions."""
    x = np.random.default_rng(2).uniform(size=1000)
    number, word = pl.Series(x), pl.Series(np.where(x > np.median(x), "high", "low"))
    assert nats(word, number, ("category", "number")) == pytest.approx(np.log(2), abs=0.03)
    assert nats(number, word, ("number", "category")) == pytest.approx(np.log(2), abs=0.03)


def test_missing_is_a_class_of_its_own() -> None:
    """`lab` is missing exactly where `who` is a, and noise elsewhere: ln 2 through being missing alone."""
    rng = np.random.default_rng(3)
    who = pl.Series(["a", "b"] * 400)
    lab = pl.Series([None if w == "a" else float(v) for w, v in zip(who, rng.normal(size=800), strict=True)])
    assert nats(who, lab, ("category", "number")) == pytest.approx(np.log(2), abs=0.03)
    # With `lab` as the target only its present rows count, where `who` is constant.
    assert nats(lab, who, ("number", "category")) == 0.0


def test_half_missing_gives_half_the_information() -> None:
    """A copy of a half that is present at random: 1/2 of what the present half holds, plus nothing for being absent."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=1600)
    y = 0.9 * x + np.sqrt(1 - 0.81) * rng.normal(size=1600)
    half = pl.Series([None if gone else float(v) for gone, v in zip(rng.random(1600) < 0.5, y, strict=True)])
    assert nats(pl.Series(x), half, ("number", "number")) == pytest.approx(0.5 * 0.830, abs=0.08)


def test_dates_are_minutes_scales_are_numbers_and_words_are_classes() -> None:
    dates = pl.Series([datetime.datetime(1970, 1, 1, 2), None], dtype=pl.Datetime)
    assert mixed(dates, feature("date"), "date").number[0] == 120.0
    assert mixed(dates, feature("date"), "date").code.tolist() == [NUMBER, MISSING]
    scale = mixed(pl.Series(["1", "3", None]), feature("category", ordinal=True), "category")
    assert scale.number[:2].tolist() == [1.0, 3.0] and scale.code.tolist() == [NUMBER, NUMBER, MISSING]
    both = mixed(pl.Series(["1", "none", "3", "<1"]), feature("category"), "number")
    assert both.code[0] == both.code[2] == NUMBER and len(set(both.code[[1, 3]]) - {NUMBER, MISSING}) == 2
    plain = mixed(pl.Series(["a", "b", None]), feature("category"), "category")
    assert len(set(plain.code)) == 3 and NUMBER not in plain.code and plain.code[2] == MISSING


def test_a_few_rows_are_no_information_and_no_error() -> None:
    for n in range(5):
        x = pl.Series([float(i) for i in range(n)], dtype=pl.Float64)
        words = pl.Series([str(i) for i in range(n)], dtype=pl.String)
        assert nats(x, words, ("number", "category")) == 0.0
        assert nats(x, x * 2, ("number", "number")) >= 0.0
