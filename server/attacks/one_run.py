"""A lower bound on epsilon from one training run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).

Canaries are put into the training set by independent fair coins. From what the training let out somebody guesses of
some of them whether they were in. Under (epsilon, delta)-differential privacy the number of right guesses among r is
not above a binomial with success e^epsilon / (1 + e^epsilon), but for a term in delta (theorem 5.2); so many right
guesses show that epsilon is not below some value.
"""

import math

import numpy as np
from scipy.stats import binom

LARGEST = 60.0
"""No bound above it is looked for: e^60 cannot be told from certainty by any number of canaries."""


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of at least `right` right guesses under (epsilon, delta)-differential privacy.

    Args:
        canaries: m, each in or out by a fair coin; about the others nothing was guessed.
    """
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, chance))
    if not delta or not right:
        return min(beyond, 1.0)
    # What delta can add: the largest, over i, of the probability of falling short by 1 to i, divided by i.
    short = np.cumsum(binom.pmf(right - np.arange(1, right + 1), guesses, chance))
    steepest = float((short / np.arange(1, right + 1)).max())
    return min(beyond + 2.0 * canaries * delta * steepest, 1.0)


def lower_epsilon(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses rule out at this confidence; 0 where they rule out none."""
    low, high = 0.0, LARGEST
    if p_value(canaries, guesses, right, low, delta) > 1.0 - confidence:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) <= 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low


def right_guesses(scores: np.ndarray, inside: np.ndarray, guesses: int) -> int:
    """Guess `in` for the highest half of the guesses and `out` for the lowest, nothing for those between.

    Args:
        scores: [m] higher where the training seems to have seen the canary.
        inside: [m] bool.
        guesses: even, at most m; fixed before the scores are seen.

    Returns:
        how many of the guesses are right.
    """
    order, half = np.argsort(scores, kind="stable"), guesses // 2
    return int(inside[order[len(order) - half :]].sum() + (~inside[order[:half]]).sum())
