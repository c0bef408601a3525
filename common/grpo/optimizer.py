"""The optimiser of the local steps, and its state as named tensors.

`paged_adamw_8bit` is bitsandbytes' AdamW with both moments in 8 bits by blocks of 256 values (Dettmers et al. 2021,
arXiv 2110.02861). Paged: on a GPU the moments may move to the CPU's memory; on a CPU there is nothing to page.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.study import Grpo

TABLES = ("qmap1", "qmap2")
"""What 8 bits stand for: the same constants for every parameter."""


def make_optimizer(parameters: Iterable[nn.Parameter], spec: Grpo) -> Any:
    """AdamW as the study names it, a `torch.optim.Optimizer` without state.

    Raises:
        UserError: bitsandbytes is not installed and the study needs it.
    """
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    try:
        from bitsandbytes.optim import PagedAdamW8bit
    except ImportError:
        raise UserError(
            "grpo.optimizer = 'paged_adamw_8bit' needs bitsandbytes, which is not installed here.",
            "Install wardround[eight-bit], or set grpo.optimizer = 'adamw'.",
        ) from None
    return PagedAdamW8bit(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moments and step counts on the CPU, as `what/parameter`."""
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            if key not in TABLES:
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


@torch.no_grad()
def restore(optimizer: Any, parameters: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Put `state_tensors` back into a new optimiser; a parameter that is new to it starts afresh."""
    group = optimizer.param_groups[0]
    for index, (name, parameter) in enumerate(parameters.items()):
        if f"step/{name}" not in tensors:
            continue
        state = optimizer.state[parameter]
        if isinstance(optimizer, torch.optim.AdamW):
            moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            # AdamW keeps the count of steps on the CPU.
            state |= {"step": tensors[f"step/{name}"], **moments}
            continue
        # bitsandbytes makes the buffers, on a GPU paged ones.
        optimizer.init_state(group, parameter, 0, index)
        for key in [key for key in state if key not in TABLES]:
            if key == "step":
                state[key] = int(tensors[f"{key}/{name}"])
            else:
                state[key].copy_(tensors[f"{key}/{name}"])
