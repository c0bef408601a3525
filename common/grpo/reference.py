"""The reference of the KL term, moved toward the policy now and then (C-Reason: method.md section 1, "objective").

Gorbatovski et al. 2024, "Learn Your Reference Model" (arXiv 2404.09656), soft update; the arithmetic is TRL's.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.grpo.ranks import rank
from common.grpo.zero import gathered
from common.study import Grpo


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write `path` so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


class MovingReference:
    """reference = alpha * policy + (1 - alpha) * reference, after every `reference_every` steps of the run.

    Its weights are part of a cohort's state between rounds, like the optimiser's. A cohort that starts afresh takes
    the model of its round as the reference. Where DeepSpeed shares the weights out, one tensor at a time is whole, and
    all processes call each method together.

    Args:
        reference: the model that TRL compares with; policy: the model that is trained, all parameters of it.
        folder: where `reference-<step>.safetensors` lies.
        accelerator: the trainer's.
    """

    def __init__(
        self, reference: nn.Module, policy: nn.Module, spec: Grpo, folder: Path, accelerator: Accelerator
    ) -> None:
        assert spec.reference_every is not None
        self.reference = dict(accelerator.unwrap_model(reference).named_parameters())
        self.policy, self.folder, self.accelerator = dict(policy.named_parameters()), folder, accelerator
        self.every, self.alpha = spec.reference_every, spec.reference_alpha

    def path(self, step: int) -> Path:
        return self.folder / f"reference-{step}.safetensors"

    @torch.no_grad()
    def start(self, step: int) -> None:
        """Put in place what was kept at `step`; at 0, the policy as it is. Before the policy is shared out."""
        values = load_file(self.path(step)) if step else self.policy  # the file is mapped, not read at once
        for name, parameter in self.reference.items():
            with gathered(self.accelerator, [parameter], changed=True):
                parameter.copy_(values[name])

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Call after each step, counted from 0 over the whole run."""
        if (step + 1) % self.every:
            return
        for name, parameter in self.reference.items():
            policy = self.policy[name]
            with gathered(self.accelerator, [policy]), gathered(self.accelerator, [parameter], changed=True):
                parameter.mul_(1.0 - self.alpha).add_(policy, alpha=self.alpha)

    def save(self, step: int) -> None:
        """Written by the first process."""
        tensors = {}
        for name, parameter in self.reference.items():
            with gathered(self.accelerator, [parameter]):
                if rank() == 0:
                    tensors[name] = parameter.detach().to("cpu", copy=True).contiguous()
        if rank() == 0:
            save_whole(tensors, self.path(step))
