"""The lower bound on epsilon: against a mechanism whose epsilon is known, and where it can be written down."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from server.attacks.one_run import lower_epsilon, p_value, right_guesses


@pytest.mark.parametrize("canaries", [10, 64, 500])
def test_all_right_guesses_have_a_closed_form(canaries: int) -> None:
    """(e^eps / (1 + e^eps))^m = 0.05."""
    chance = 0.05 ** (1 / canaries)
    assert lower_epsilon(canaries, canaries, canaries, 0.0) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


def test_without_delta_it_is_the_binomials_tail() -> None:
    assert p_value(40, 30, 22, 1.0, 0.0) == binom.sf(21, 30, math.e / (1 + math.e))


def test_delta_by_a_loop_over_what_it_can_add() -> None:
    chance = 1 / (1 + math.exp(-0.7))
    steepest = max(
        sum(binom.pmf(25 - j, 30, chance) for j in range(1, i + 1)) / i for i in range(1, 26)
    )
    expected = binom.sf(24, 30, chance) + 2 * 40 * 1e-3 * steepest
    assert p_value(40, 30, 25, 0.7, 1e-3) == pytest.approx(expected)


def test_more_right_guesses_and_less_delta_rule_out_more() -> None:
    bounds = [lower_epsilon(50, 40, right, 1e-5) for right in range(41)]
    assert bounds[20] == 0.0 and bounds[40] > 2.0 and bounds == sorted(bounds)
    assert lower_epsilon(50, 40, 40, 1e-2) < bounds[40]


def test_the_bound_of_randomised_response_is_below_its_epsilon() -> None:
    """Who tells the coin's truth with e^eps / (1 + e^eps) has epsilon eps: the bound fails in 5 of 100 runs at most."""
    rng, epsilon, runs = np.random.default_rng(1), 1.5, 400
    right = rng.binomial(200, 1 / (1 + math.exp(-epsilon)), runs)
    bound = {n: lower_epsilon(200, 200, int(n), 0.0) for n in set(right)}
    bounds = np.array([bound[n] for n in right])
    assert (bounds > epsilon).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert bounds.mean() > 0.7 * epsilon, "and it is no empty bound"


def test_guesses_are_for_the_ends() -> None:
    scores, inside = np.array([5.0, -1.0, 0.0, 3.0, 2.0, -4.0]), np.array([True, False, True, True, False, True])
    assert right_guesses(scores, inside, 2) == 1
    assert right_guesses(scores, inside, 4) == 3
    assert right_guesses(scores, inside, 6) == 3
