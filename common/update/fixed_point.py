"""Values as whole numbers modulo 2^32, so that a sum over sites can be taken under masks that cancel.

    sent = round(x S) mod 2^32,   sum = signed(total mod 2^32) / S

with n sites and no value of a site beyond B. S is the largest power of two for which n values cannot run over:
n (B S + 1/2) < 2^31. Powers of two keep the products exact, so that the only error is that of rounding: a value is off
by at most 1 / (2 S), a sum of m sites by m / (2 S). With 8 sites and B = 1 a value's step is 2^-27 = 7.5e-9.

flwr's SecAgg+ (default clip 8, 2^22 levels) has steps of 1.9e-6 there, which rounds small updates to 0.
"""

import math
from dataclasses import dataclass

import numpy as np

HALF = 1 << 31


class OutOfRange(ValueError):
    """A value that the encoding has no room for. Nothing was sent."""


@dataclass(frozen=True)
class FixedPoint:
    """Args: `bound`: no value of any site lies beyond it; `sites`: at most so many are summed."""

    bound: float
    sites: int

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf or self.sites < 1:
            raise ValueError(f"bound {self.bound} must be positive and finite, sites {self.sites} at least 1")

    @property
    def scale(self) -> float:
        room = (HALF - 1) / self.sites - 0.5
        return 2.0 ** math.floor(math.log2(room / self.bound))

    def error(self, summed: int) -> float:
        """Largest error of a sum over so many sites."""
        return summed / (2 * self.scale)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """[N] floats -> [N] uint32.

        Raises:
            OutOfRange: a value is not finite or lies beyond the bound: it would wrap around and spoil the sum unseen.
        """
        wide = values.astype(np.float64)
        if wide.size and not np.abs(wide).max() <= self.bound:
            raise OutOfRange(f"a value lies beyond {self.bound} or is not finite")
        return np.rint(wide * self.scale).astype(np.int64).astype(np.uint32)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """[N] uint32, a sum modulo 2^32 -> [N] float64."""
        return total.view(np.int32).astype(np.float64) / self.scale
