"""FedProx: local steps minimise loss(w) + mu / 2 |w - w0|^2, w0 the round's model.

(Li et al. 2020, arXiv 1812.06127, equation 2.) It holds sites of different data together; its gradient is mu (w - w0).
"""

import torch
from torch import Tensor, nn


def anchor(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """float32 copies of the weights that the term pulls toward."""
    return {name: parameter.detach().float().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def add_pull(parameters: dict[str, nn.Parameter], toward: dict[str, Tensor], mu: float) -> None:
    """Add the term's gradient to the gradients that the loss left."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad += mu * (parameter.detach() - toward[name])
