"""float32 master weights for bfloat16 training.

At a learning rate of 1e-6 a step moves a bfloat16 weight by less than half a unit in its last place, so stepping the
bfloat16 weight itself would lose most of it. The optimiser steps float32 masters (Micikevicius et al. 2018,
arXiv 1710.03740, section 3.1); the model computes with their rounding. What rounding leaves is kept with the
optimiser's state, so that the next round starts from its model plus what this cohort has gained below a unit.
Parameters of other types are their own masters.
"""

import torch
from torch import Tensor, nn


class MasterWeights:
    """What the optimiser steps in place of `parameters`.

    Args:
        parameters: of the model, by name.
        residual: what the run's last rounding left, float32 by name; empty at the start.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], residual: dict[str, Tensor]) -> None:
        self.rounded = {n: p for n, p in parameters.items() if p.dtype == torch.bfloat16}
        self.stepped = dict(parameters)
        for name, parameter in self.rounded.items():
            master = parameter.detach().float()
            if name in residual:
                master += residual[name].to(master.device)
            self.stepped[name] = nn.Parameter(master)

    def take_gradients(self) -> None:
        """Hand the model's gradients to the masters."""
        for name, parameter in self.rounded.items():
            self.stepped[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """Round the masters into the model."""
        for name, parameter in self.rounded.items():
            parameter.copy_(self.stepped[name])

    def residual(self) -> dict[str, Tensor]:
        """Masters less their rounding, exact in float32."""
        return {name: self.stepped[name].detach() - p.detach().float() for name, p in self.rounded.items()}
