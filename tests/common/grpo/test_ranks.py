"""What several processes share: rows, even and in order; draws, which together are those of one."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from common.errors import UserError
from common.grpo.ranks import (
    Draws,
    average_gradients,
    by_group,
    even_parts,
    my_groups,
    my_share,
    rows_per_rank,
    share,
)

ALIVE = {0: [3, 2, 0], 1: [2, 2, 1]}
"""Rows under way at each token, by process; process 0 ends first."""


def one_of_two(rank: int, folder: str) -> None:
    store = distributed.FileStore(os.path.join(folder, "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(5)
    draws, drawn = Draws(longest=3), []
    for count in ALIVE[rank]:
        if count:
            drawn.append(draws(count, torch.device("cpu")))
    draws.finish(torch.device("cpu"))
    # Of few rows the first process may have none.
    few = Draws(longest=2)
    lonely = [few(2, torch.device("cpu")) for _ in range(2)] if rank else []
    few.finish(torch.device("cpu"))
    after = torch.rand(1)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    average_gradients([weight])
    with pytest.raises(UserError, match="5 questions of 3 completions a step cannot be shared out evenly over 2"):
        rows_per_rank(5, 3)
    out = {
        "drawn": drawn, "lonely": lonely, "after": after, "grad": weight.grad, "share": my_share("abcdef"),
        "uneven": my_share("abc"), "none": my_share("a"), "groups": my_groups(3, 4), "rows": rows_per_rank(3, 4),
    }  # fmt: skip
    torch.save(out, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_two_processes_draw_what_one_would(tmp_path: Path) -> None:
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.manual_seed(5)
    for token in range(3):
        want = torch.rand(ALIVE[0][token] + ALIVE[1][token], 1)
        parts = [out["drawn"][token] for out in (first, second) if token < len(out["drawn"])]
        assert torch.equal(torch.cat(parts), want)
    assert torch.equal(torch.cat(second["lonely"]), torch.rand(4, 1)) and first["lonely"] == []
    # The generators stand alike afterwards, in the process that ended early too.
    assert torch.equal(first["after"], second["after"]) and torch.equal(first["after"], torch.rand(1))
    assert first["grad"].tolist() == second["grad"].tolist() == [1.5, 3.0]
    assert (first["share"], second["share"]) == (["a", "b", "c"], ["d", "e", "f"])
    assert (first["uneven"], second["uneven"]) == (["a"], ["b", "c"]) and (first["none"], second["none"]) == ([], ["a"])
    # The group in the middle lies on both.
    assert (first["groups"], second["groups"]) == ({0: 4, 1: 2}, {1: 2, 2: 4})
    assert first["rows"] == second["rows"] == 6


def test_alone_everything_is_ones_own() -> None:
    torch.manual_seed(3)
    drawn = Draws(longest=2)(4, torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4, 1))
    assert rows_per_rank(7, 4) == 28 and my_share([1, 2]) == [1, 2] and my_groups(2, 3) == {0: 3, 1: 3}


@given(groups=st.integers(0, 12), size=st.integers(2, 9), processes=st.integers(1, 20))
def test_shares_are_even_in_order_and_everything(groups: int, size: int, processes: int) -> None:
    shares = [share(groups * size, number, processes) for number in range(processes)]
    assert [row for rows in shares for row in rows] == list(range(groups * size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if groups * size % processes == 0:
        assert len({len(rows) for rows in shares}) == 1


@given(groups=st.integers(1, 12), size=st.integers(2, 9), processes=st.integers(1, 20))
def test_a_groups_parts_are_the_group(groups: int, size: int, processes: int) -> None:
    parts = [by_group(share(groups * size, number, processes), size) for number in range(processes)]
    assert all(count > 0 for part in parts for count in part.values())
    for group in range(groups):
        assert sum(part.get(group, 0) for part in parts) == size
    # A process has a part of neighbours, and only the first and the last of them need not be whole.
    for part in parts:
        assert list(part) == list(range(min(part, default=0), min(part, default=0) + len(part)))
        assert all(count == size for count in list(part.values())[1:-1])


@given(groups=st.integers(1, 12), size=st.integers(2, 9), at_once=st.integers(1, 12))
def test_parts_of_a_share_are_as_few_as_fit(groups: int, size: int, at_once: int) -> None:
    rows = groups * size
    parts = even_parts(rows, at_once * size)
    assert rows % parts == 0 and rows // parts <= at_once * size
    assert not any(rows % fewer == 0 and rows // fewer <= at_once * size for fewer in range(1, parts))
    # One process, or processes with whole groups: parts of `at_once` groups.
    if groups % at_once == 0:
        assert parts == groups // at_once


def test_seven_processes_take_the_papers_step_whole() -> None:
    """5 x 7 completions: 5 a process, which are fewer than one group's."""
    assert [by_group(share(35, number, 7), 7) for number in (0, 1, 6)] == [{0: 5}, {0: 2, 1: 3}, {4: 5}]
    assert even_parts(5, 7) == 1
