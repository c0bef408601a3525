"""Several processes that take one training step together, each with an even share of its rows.

A row is one completion of a question's group. Shares are contiguous, so a group may lie on several processes; each
computes its prompt once. Advantages are taken over whole groups, from the rewards of all processes.
"""

from collections import Counter
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


def share(count: int, number: int, processes: int) -> range:
    """Which of `count` rows process `number` takes, in order; the shares differ by one where they cannot be even."""
    return range(count * number // processes, count * (number + 1) // processes)


def my_share(rows: Sequence[Row]) -> list[Row]:
    return [rows[row] for row in share(len(rows), rank(), world())]


def by_group(rows: range, size: int) -> dict[int, int]:
    """How many of these rows each group of `size` has, in order; groups without any are left out."""
    return dict(Counter(row // size for row in rows))


def my_groups(count: int, size: int) -> dict[int, int]:
    """The groups, of `count` that are shared out row by row, that this process has a part in, and its rows of each."""
    return by_group(share(count * size, rank(), world()), size)


def everyones(rows: list[Row]) -> list[Row]:
    """The processes' lists one after the other, on each."""
    if world() == 1:
        return rows
    parts: list[list[Row]] = [[] for _ in range(world())]
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def largest(number: int) -> int:
    """The largest of the processes' numbers: under ZeRO-3 all run a module equally often, as they fetch its weights
    from each other at each call."""
    return max(everyones([number]))


def rows_per_rank(prompts: int, group: int) -> int:
    """Rows of a step that each process takes.

    Raises:
        UserError: they cannot be shared out evenly; a mean over unequal shares would weigh rows unequally.
    """
    if prompts * group % world():
        raise UserError(
            f"{prompts} questions of {group} completions a step cannot be shared out evenly over {world()} processes.",
            "Start as many processes as divide the completions of a step (grpo.prompts_per_step x grpo.group_size, "
            "times the number of sites in centralized training).",
        )
    return prompts * group // world()


def even_parts(rows: int, at_most: int) -> int:
    """In how many equal parts a process learns from its rows: as few as hold no more than `at_most` rows each."""
    return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= at_most)


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
