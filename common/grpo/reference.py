"""The reference of the KL term, moved toward the policy now and then (C-Reason: method.md section 1, "objective").

Gorbatovski et al. 2024, "Learn Your Reference Model" (arXiv 2404.09656), soft update; the arithmetic is TRL's.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.callbacks import SyncRefModelCallback

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
    the model of its round as the reference.

    Args:
        reference: the model that TRL compares with; policy: the model that is trained, all parameters of it.
        folder: where `reference-<step>.safetensors` lies.
    """

    def __init__(self, reference: nn.Module, policy: nn.Module, spec: Grpo, folder: Path) -> None:
        assert spec.reference_every is not None
        self.reference, self.policy, self.folder = reference, policy, folder
        self.every, self.alpha = spec.reference_every, spec.reference_alpha

    def path(self, step: int) -> Path:
        return self.folder / f"reference-{step}.safetensors"

    @torch.no_grad()
    def start(self, step: int) -> None:
        """Put in place what was kept at `step`; at 0, the policy as it is."""
        values = load_file(self.path(step)) if step else dict(self.policy.named_parameters())
        for name, parameter in self.reference.named_parameters():
            parameter.copy_(values[name])

    def after(self, step: int) -> None:
        """Call after each step, counted from 0 over the whole run."""
        if (step + 1) % self.every == 0:
            SyncRefModelCallback.sync_target_model(self.policy, self.reference, self.alpha)

    def save(self, step: int) -> None:
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.reference.named_parameters()}
        save_whole(tensors, self.path(step))
