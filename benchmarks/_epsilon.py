"""The noise that a private study needs to end at an epsilon."""

from common.privacy import Privacy

LEAST, MOST = 0.3, 64.0
"""Noise multipliers that are looked at: the study refuses less than the first."""


def with_epsilon(privacy: Privacy, steps: int, epsilon: float) -> Privacy:
    """`privacy` with the least noise, to two decimals of the multiplier, that ends at this epsilon at most."""
    low, high = LEAST, MOST
    while high - low > 0.01:
        noise = (low + high) / 2
        enough = privacy.model_copy(update={"noise_multiplier": noise}).epsilon(steps) <= epsilon
        low, high = (low, noise) if enough else (noise, high)
    return privacy.model_copy(update={"noise_multiplier": high})
