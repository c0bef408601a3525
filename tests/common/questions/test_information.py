import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.questions.information import all_pairs, bins_for, classes, coarse, pair_counts


def normal_pair(rho: float, n: int, seed: int) -> tuple[pl.Series, pl.Series]:
    x, e = np.random.default_rng(seed).normal(size=(2, n))
    return pl.Series(x), pl.Series(rho * x + np.sqrt(1 - rho**2) * e)


def nats(target: pl.Series, other: pl.Series, continuous: tuple[bool, bool]) -> float:
    bins = bins_for(len(target))
    coded = [classes(s, c, bins) for s, c in zip((target, other), continuous, strict=True)]
    return float(all_pairs([c for c, _ in coded], [n for _, n in coded])[0, 1])


@pytest.mark.parametrize("n", [500, 2000, 20000])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8, 0.9])
def test_a_gaussian_pair_has_its_known_information(rho: float, n: int) -> None:
    x, y = normal_pair(rho, n, seed=n)
    truth = -0.5 * np.log(1 - rho**2)
    # Bins lose some of a continuous relation; the correction keeps noise from adding any.
    assert nats(x, y, (True, True)) == pytest.approx(truth, abs=0.03 + 0.2 * truth)


def test_only_the_order_of_a_continuous_column_counts() -> None:
    x, y = normal_pair(0.7, 2000, seed=1)
    assert nats(x, y, (True, True)) == pytest.approx(nats(x, y.exp(), (True, True)))


def test_a_copy_has_the_information_of_the_column() -> None:
    x = pl.Series(["a"] * 500 + ["b"] * 300 + ["c"] * 200)
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    assert nats(x, x.clone(), (False, False)) == pytest.approx(entropy, abs=0.005)


def test_missing_is_a_class_of_the_other_column_only() -> None:
    target = pl.Series(["a", "b"] * 500)
    telltale = pl.Series([None if t == "a" else "seen" for t in target])
    assert nats(target, telltale, (False, False)) == pytest.approx(np.log(2), abs=0.005)
    # With `telltale` as the target only its present rows count, and it is constant there.
    assert nats(telltale, target, (False, False)) == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 199))
def test_counts_of_two_groups_add_up(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [3, 5, 2]
    codes = [rng.integers(0, size, 200) for size in sizes]
    parts = [pair_counts([c[part] for c in codes], sizes) for part in (slice(0, cut), slice(cut, None))]
    assert np.array_equal(parts[0] + parts[1], pair_counts(codes, sizes))


@pytest.mark.parametrize("seen", [25, 60, 150])
def test_a_value_of_few_patients_is_not_held_by_every_column(seen: int) -> None:
    """2,000 rows make 20 bins of each; the target is present in few rows, and nothing is related to anything."""
    rng = np.random.default_rng(seen)
    target = pl.Series(np.where(np.arange(2000) < seen, rng.normal(size=2000), np.nan)).fill_nan(None)
    others = [pl.Series(rng.normal(size=2000)) for _ in range(20)]
    assert max(nats(target, other, (True, True)) for other in others) < 0.25


def test_a_copy_is_seen_in_few_rows_too() -> None:
    rng = np.random.default_rng(2)
    target = pl.Series(np.where(np.arange(2000) < 60, rng.normal(size=2000), np.nan)).fill_nan(None)
    assert nats(target, target.fill_null(0.0), (True, True)) > 0.5


def test_merging_keeps_missing_apart_and_every_count() -> None:
    """4 x (missing and 4) classes of 8 rows: under 2.5 a cell, so down to 2 x 2 beside the missing."""
    table = np.array([[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])
    assert coarse(table).tolist() == [[2, 2, 0], [0, 0, 4]]
    assert np.array_equal(coarse(table * 10), table * 10)
