"""Draws that several processes share: together they are those of one."""

import os
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import distributed

from common.errors import UserError
from common.grpo.ranks import Draws, average_gradients, groups_at_once, groups_per_rank, my_share

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
    refused = []
    for prompts, wished in ((5, 1), (6, 2)):
        try:
            groups_at_once(prompts, wished)
        except UserError as error:
            refused.append(error.what)
    out = {
        "drawn": drawn, "lonely": lonely, "after": after, "grad": weight.grad, "share": my_share("abcdef"),
        "uneven": my_share("abc"), "none": my_share("a"), "at_once": [groups_at_once(6, n) for n in (None, 1, 5)],
        "refused": refused,
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
    for out in (first, second):
        assert out["at_once"] == [3, 1, 3]
        assert ["shared out evenly" in out["refused"][0], "does not divide the 3" in out["refused"][1]] == [True, True]


def test_alone_everything_is_ones_own() -> None:
    torch.manual_seed(3)
    drawn = Draws(longest=2)(4, torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4, 1))
    assert groups_per_rank(7) == 7 and my_share([1, 2]) == [1, 2]
    assert groups_at_once(6, None) == 6 and groups_at_once(6, 2) == 2
