"""The whole update scaled down to an L2 norm at most: sent = x min(1, C / |x|), the norm over all tensors, in float64.

Bounds what one site can do to the model (McMahan et al. 2018, arXiv 1710.06963, flat clipping). What is cut off is
not fed back. Costs no bytes. Not exact; what it sends may be summed, so it can stand under a secure sum.
"""

import math

from common.update.tensors import State


def norm(values: State) -> float:
    """L2 norm over all tensors together, in float64."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


class Clip:
    name = "clip"
    exact = False
    linear = True
    side = ""
    feeds_back = False

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def encode(self, values: State, before: State) -> State:
        length = norm(values)
        if length <= self.bound:
            return values
        return {name: (value.double() * (self.bound / length)).float() for name, value in values.items()}

    def like(self, before: State) -> State:
        return before

    def decode(self, values: State, before: State, source: str) -> State:
        return values
