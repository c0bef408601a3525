"""Fold the sites' models into one, streaming: the coordinator holds one accumulator, however many sites there are.

The accumulator is float64 and holds the weighted mean of the sites' VALUES,

    mean = sum_i (w_i / sum_j w_j) v_i,

rather than of their differences to the global model: g + (v - g) in float64 loses bits of v where the two
differ by more than 29 binary orders (a weight that crosses zero does), and the mean of one site has to be
that site's model bit for bit. Outer optimisers take the difference g - mean themselves.
"""

from collections.abc import Iterable

import torch

from common.errors import UserError
from common.update.tensors import State


def normalised(weights: dict[str, float]) -> dict[str, float]:
    """Weights that sum to 1; a lone site gets exactly 1.0.

    Raises:
        UserError: a weight that is negative or not finite, or no positive one.
    """
    for site, weight in weights.items():
        if not 0.0 <= weight < float("inf"):
            raise UserError(f"The weight of site {site!r} is {weight}.", "Weights must be finite and not negative.")
    total = sum(weights.values())
    if total <= 0:
        raise UserError("All weights of the round are zero.", "Use rounds.weights = 'uniform'.")
    return {site: weight / total for site, weight in weights.items()}


def fold_mean(updates: Iterable[tuple[float, State]]) -> State:
    """Weighted mean in float64.

    Args:
        updates: (normalised weight, site's model) one after the other, in an order that does not depend on
            who answered first; each is dropped before the next is asked for.

    Returns:
        The mean, float64, in the shapes of the models.
    """
    mean: State = {}
    for weight, values in updates:
        for name, value in values.items():
            share = value.to(torch.float64).mul_(weight)
            if name in mean:
                mean[name].add_(share)
            else:
                mean[name] = share
    return mean
