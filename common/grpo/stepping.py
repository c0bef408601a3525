"""What becomes of the gradients of a step: averaged over the processes, pulled, clipped, and taken by the optimiser."""

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.grpo.master import MasterWeights
from common.grpo.optimizer import make_optimizer, restore, state_tensors
from common.grpo.proximal import add_pull, anchor
from common.grpo.ranks import average_gradients
from common.study import Grpo

RESIDUAL = "residual/"
"""What the name of a master's residual begins with in the file of the optimiser's state."""
LAYOUT = "layout"
"""Name of DeepSpeed's ZeRO stage and the number of processes, in a file that is theirs alone."""


def check_layout(kept: dict[str, Tensor], layout: list[int]) -> None:
    """Refuse state that cannot be read as processes of this layout hold it; `[]` where parameters are whole.

    Raises:
        UserError: 8-bit moments of other processes; their blocks of 256 values cannot be cut anew.
    """
    found = kept[LAYOUT].tolist() if LAYOUT in kept else []
    if found != layout:
        written, asked = (f"ZeRO-{names[0]} with {names[1]} processes" if names else "no DeepSpeed"
                          for names in (found, layout))  # fmt: skip
        raise UserError(
            f"The optimiser's 8-bit state was written under {written} and cannot be read under {asked}.",
            "Go on with the launcher that the run began with, or begin the run anew.",
        )


class OwnSteps:
    """An optimiser on parameters that every process holds whole; the counterpart of `common.grpo.zero.ZeroSteps`.

    Args:
        parameters: of the model that are trained, by name.
        kept: what `state` gave at the end of the last round; empty at the start of a run.
        proximal: FedProx's mu; the pull is toward the weights as they are now.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], grpo: Grpo, kept: dict[str, Tensor], proximal: float
    ) -> None:
        self.parameters, self.proximal, self.max_grad_norm = parameters, proximal, grpo.max_grad_norm
        residual = {n.removeprefix(RESIDUAL): t for n, t in kept.items() if n.startswith(RESIDUAL)}
        self.masters = MasterWeights(parameters, residual)
        self.stepped = self.masters.stepped
        self.toward = anchor(parameters) if proximal else {}
        self.optimizer = make_optimizer(self.stepped.values(), grpo)
        if kept:
            check_layout(kept, [])
            restore(self.optimizer, self.stepped, kept)

    def set_rate(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def step(self) -> None:
        """Take the gradients that the backward pass left."""
        average_gradients(list(self.parameters.values()))
        self.masters.take_gradients()
        if self.proximal:
            add_pull(self.stepped, self.toward, self.proximal)
        torch.nn.utils.clip_grad_norm_(self.stepped.values(), self.max_grad_norm)
        self.optimizer.step()
        self.masters.put_back()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimiser's moments and step counts and the masters' residual, on the CPU."""
        tensors = {f"{RESIDUAL}{name}": value.cpu().contiguous() for name, value in self.masters.residual().items()}
        return tensors | state_tensors(self.optimizer, self.stepped)
