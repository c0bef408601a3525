"""What LoRA's factors lose when they are averaged apart: measured, and put back into the frozen weights.

Sites' layers add s B_i A_i to a weight W (s = alpha / rank). With the factors A and B of the next model,

    lacking = sum_i w_i B_i A_i - B A,        W' = W + s lacking

makes the next model's layers the exact mean of the sites' (FedEx-LoRA, Singhal et al. 2024, arXiv 2410.09432). The
coordinator has to see each site's factors for it. One layer stands in memory at a time, whatever the number of sites.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.model import Lora
from common.models.adapters import FACTOR_A, FACTOR_B, FROZEN
from common.update.tensors import State
from server.fold import Files, new_buffer, whole
from server.outer import rounded


def layers(model: State) -> list[str]:
    """What the names of a layer's tensors begin with."""
    return sorted(name.removesuffix(FACTOR_B) for name in model if name.endswith(FACTOR_B))


def gaps(files: Files, weights: dict[str, float], model: State) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Layer by layer the mean product of the sites' factors, and the product of `model`'s factors less it.

    Args:
        weights: of the sites' models in the mean, normalised.
        model: the next one; its factors are the means, rounded to their type.

    Yields:
        layer, mean product and difference, float64 [out, in].
    """
    buffer = new_buffer()
    for layer in layers(model):
        factor_a, factor_b = (model[layer + ending].double() for ending in (FACTOR_A, FACTOR_B))
        product = factor_b @ factor_a
        mean = torch.zeros_like(product)
        for site, file in files.items():
            theirs_a = whole(file, layer + FACTOR_A, factor_a.shape, buffer)
            theirs_b = whole(file, layer + FACTOR_B, factor_b.shape, buffer)
            mean += weights[site] * (theirs_b @ theirs_a)
        yield layer, mean, product - mean


def measure_and_correct(
    lora: Lora, weights: dict[str, float], files: Files, model: State, outer: State
) -> tuple[State, float]:
    """The corrected frozen weights where the study corrects them, and what averaging the factors apart lost.

    Args:
        model: with the means of the sites' factors, and the frozen weights of the round before.
        outer: the outer optimiser's state; it keeps what rounding to bfloat16 leaves of a correction.

    Returns:
        frozen weights by name; and ||B A - sum_i w_i B_i A_i|| / ||sum_i w_i B_i A_i||, Frobenius over all layers.
    """
    corrected: State = {}
    lost = products = 0.0
    for layer, mean, gap in gaps(files, weights, model):
        lost, products = lost + float(gap.square().sum()), products + float(mean.square().sum())
        if lora.average == "residual":
            name = layer + FROZEN
            # Less the gap rather than plus what lacks: one site's gap is 0, and -0.0 + 0.0 is not -0.0.
            after = model[name].double() - lora.alpha / lora.rank * gap
            corrected[name] = rounded(outer, name, after, model[name].dtype)
    return corrected, (lost / products) ** 0.5 if products else 0.0
