import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.update.fixed_point import HALF, FixedPoint, OutOfRange

bounds = st.floats(1e-6, 1e6)
sites = st.integers(1, 64)


@given(bounds, sites, st.integers(0, 2**32 - 1))
def test_the_sum_is_the_plain_sum_within_the_stated_error(bound: float, number: int, seed: int) -> None:
    coding = FixedPoint(bound, number)
    values = np.random.default_rng(seed).uniform(-bound, bound, (number, 50))
    total = np.zeros(50, np.uint32)
    for row in values:
        total += coding.encode(row)
    assert np.abs(coding.decode(total) - values.sum(axis=0)).max() <= coding.error(number) * (1 + 1e-9)


@given(bounds, sites, st.sampled_from([-1.0, 1.0]))
def test_all_sites_at_the_bound_do_not_run_over(bound: float, number: int, sign: float) -> None:
    coding = FixedPoint(bound, number)
    value = np.array([sign * bound])
    assert number * (coding.bound * coding.scale + 0.5) < HALF
    total = np.zeros(1, np.uint32)
    for _ in range(number):
        total += coding.encode(value)
    assert abs(coding.decode(total)[0] - number * sign * bound) <= coding.error(number)


def test_the_scale_is_the_largest_power_of_two_that_fits() -> None:
    coding = FixedPoint(1.0, 8)
    assert coding.scale == 2.0**27
    assert 8 * (2 * coding.scale + 0.5) >= HALF


@pytest.mark.parametrize("value", [1.0000001, -2.0, np.inf, -np.inf, np.nan])
def test_what_would_wrap_around_is_refused(value: float) -> None:
    with pytest.raises(OutOfRange):
        FixedPoint(1.0, 3).encode(np.array([0.0, value]))


def test_values_far_below_the_steps_of_flwr_survive() -> None:
    coding = FixedPoint(1.0, 8)
    assert coding.decode(coding.encode(np.array([1e-7])))[0] == pytest.approx(1e-7, abs=coding.error(1))
    assert coding.encode(np.array([1e-7]))[0] != 0


@pytest.mark.parametrize(("bound", "number"), [(0.0, 3), (-1.0, 3), (np.inf, 3), (np.nan, 3), (1.0, 0)])
def test_settings_without_a_scale_are_refused(bound: float, number: int) -> None:
    with pytest.raises(ValueError, match="bound"):
        FixedPoint(bound, number)


def test_no_values_are_no_values() -> None:
    assert FixedPoint(1.0, 3).encode(np.zeros(0)).shape == (0,)
