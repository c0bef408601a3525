"""Several processes that take one training step together, each with whole groups of its questions.

A group's advantages need all of its completions and nothing of other groups', so groups are what is shared out.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from common.errors import UserError

Row = TypeVar("Row")


def world() -> int:
    """How many processes train together; 1 where nothing was started."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def my_share(rows: Sequence[Row]) -> list[Row]:
    """This process's part of some questions, in order; the parts differ by one where they cannot be even."""
    return list(rows[len(rows) * rank() // world() : len(rows) * (rank() + 1) // world()])


def everyones(rows: list[Row]) -> list[Row]:
    """The processes' lists one after the other, on each."""
    if world() == 1:
        return rows
    parts: list[list[Row]] = [[] for _ in range(world())]
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def groups_per_rank(prompts: int) -> int:
    """Questions of a step that each process takes.

    Raises:
        UserError: they cannot be shared out evenly; a mean over unequal shares would weigh groups unequally.
    """
    if prompts % world():
        raise UserError(
            f"{prompts} questions a step cannot be shared out evenly over {world()} processes.",
            "Start as many processes as divide the questions of a step (grpo.prompts_per_step, times the number of "
            "sites in centralized training).",
        )
    return prompts // world()


def groups_at_once(prompts: int, wished: int | None) -> int:
    """Questions that each process learns from at once; all of its share unless `wished` is fewer.

    Raises:
        UserError: they do not divide each process's share of a step.
    """
    share = groups_per_rank(prompts)
    if share % min(wished or share, share):
        raise UserError(
            f"grpo.groups_at_once {wished} does not divide the {share} questions of a step that each of {world()} "
            "processes takes.",
            "Start another number of processes, or set grpo.groups_at_once = 1.",
        )
    return min(wished or share, share)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over the processes, as each one's loss is a mean over its share or over the whole step's tokens."""
    if world() == 1:
        return
    for parameter in parameters:
        assert parameter.grad is not None
        distributed.all_reduce(parameter.grad)
        parameter.grad /= world()


class Draws:
    """Uniform numbers for sampling: those that one process would draw for all rows, and each takes its own.

    So what a group answers does not depend on how many processes there are, but for rounding in the logits.
    All processes hold the same generator state, and call this for each token until all have ended. One without rows
    calls `finish` alone.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.calls = longest, 0
        # Alone, nobody is waited for.
        self.total = 0 if world() == 1 else 1

    def __call__(self, count: int, device: torch.device) -> Tensor:
        """`[count, 1]` for the rows that are still under way here."""
        self.calls += 1
        if world() == 1:
            return torch.rand(count, 1, device=device)
        counts = torch.zeros(world(), dtype=torch.int64, device=device)
        counts[rank()] = count
        distributed.all_reduce(counts)
        self.total = int(counts.sum())
        before = int(counts[: rank()].sum())
        return torch.rand(self.total, 1, device=device)[before : before + count]

    def finish(self, device: torch.device) -> None:
        """Wait for the other processes' rows."""
        while self.total and self.calls < self.longest:
            self(0, device)
