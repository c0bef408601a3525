"""Whole small studies under other chains, folds and outer optimisers: each learns, and one that is interrupted amid a
round goes on to the same bits."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from common.models.policy import load_policy, trainable_state
from common.study import Study
from server.round_store import RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog
from server.simulation import InProcessGrid, load_client_app, site_contexts

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"


class Killed(Exception):
    """What stands for the end of the process."""


class KilledGrid(InProcessGrid):
    """Ends when the last site is to train in round 2: the others' updates of that round have arrived by then."""

    def deliver(self, message: Message) -> Message:
        asked = message.metadata
        if (asked.message_type, asked.group_id, asked.dst_node_id) == ("train", "2", max(self.contexts)):
            raise Killed
        return super().deliver(message)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five-sites")
    for seed, site in enumerate("abcde", start=1):
        text = f'extends = "{REGISTRY}"\nsite = "{site}"\n[synthetic]\npatients = 40\nseed = {seed}\n'
        (folder / f"{site}.toml").write_text(text)
    return folder


def go(grid: type[InProcessGrid], study: Study, model: Path, arm: Path) -> None:
    """The coordinator and the sites as a process that has just started would have them: nothing in memory."""
    app = load_client_app()
    importlib.import_module("client.training").in_memory.clear()
    store, log = RoundStore(arm), EventLog(arm / "events.jsonl", arm="federated", seed=1)
    run_rounds(grid(app, site_contexts(study, arm / "sites")), study, "run", model, store, log)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "update", "rounds", "model"),
    [
        ("ab", {"steps": ["difference", "int8"]}, {"outer": {"name": "nesterov"}}, {}),
        ("abc", {"steps": ["difference", "int4"]}, {"fold": {"name": "trimmed-mean"}}, {}),
        ("ab", {"steps": ["difference", "topk"], "topk": 0.1}, {"outer": {"name": "adam"}}, {}),
        ("ab", {"steps": ["sparse-bf16"]}, {"weights": "patients", "proximal": 0.1}, {"dtype": "bfloat16"}),
        ("abcde", {"steps": ["difference", "clip", "int8"], "clip_norm": 1.0}, {"fold": {"name": "krum"}}, {}),
        ("ab", {"steps": ["delta"]}, {"proximal": 0.1, "outer": {"name": "nesterov"}}, {"trainable": "lora"}),
    ],
    ids=["int8-nesterov", "int4-trimmed-mean", "topk-adam", "sparse-bf16-fedprox", "clip-int8-krum", "lora-fedprox"],
)
def test_an_interrupted_study_ends_with_the_same_bits(
    small_study: Callable[..., Study],
    tiny_model: Path,
    sites: Path,
    tmp_path: Path,
    train: str,
    update: dict[str, Any],
    rounds: dict[str, Any],
    model: dict[str, Any],
) -> None:
    study = small_study(
        sites={"train": list(train)},
        update=update,
        rounds={"rounds": 2, "local_steps": 2, "validation_patients": 0, "deadline_s": 300.0, **rounds},
        model={"base": str(tiny_model), **model},
        simulation={"site_configs": str(sites), "workers": 1},
    )
    go(InProcessGrid, study, tiny_model, tmp_path / "whole")
    with pytest.raises(Killed):
        go(KilledGrid, study, tiny_model, tmp_path / "killed")
    assert RoundStore(tmp_path / "killed").finished() == [0, 1]
    go(InProcessGrid, study, tiny_model, tmp_path / "killed")
    base = trainable_state(load_policy(study, tiny_model))
    for number in (0, 1, 2):
        whole, resumed = (RoundStore(tmp_path / name).load(number) for name in ("whole", "killed"))
        assert same(whole.model, resumed.model) and same(whole.outer, resumed.outer)
        assert same(whole.model, base) == (number == 0), "each round learns something"
    left = list((tmp_path / "killed" / "sites").rglob("left-over-*.safetensors"))
    feeds_back = {"int8", "int4", "topk"} & set(update["steps"])
    assert bool(left) == bool(feeds_back)


@pytest.mark.slow
def test_a_killed_process_ends_with_the_bits_of_one_that_was_not(
    small_study: Callable[..., Study], tiny_model: Path, sites: Path, tmp_path: Path
) -> None:
    """kill -9 of the command and its worker amid a run; what is kept lies at the sites and in the run folder."""
    study = small_study(
        sites={"train": ["a", "b"], "unseen": ["e"]},
        update={"steps": ["difference", "int8"]},
        rounds={"rounds": 3, "local_steps": 2, "validation_patients": 0, "outer": {"name": "nesterov"}},
        simulation={"site_configs": str(sites), "workers": 1},
    )
    go(InProcessGrid, study, tiny_model, tmp_path / "whole")
    (tmp_path / "study.toml").write_text(study.to_toml())
    line = [sys.executable, "-m", "server.cli", "simulate"]
    begin = [*line, str(tmp_path / "study.toml"), "--runs", str(tmp_path / "runs"), "--arms", "federated"]
    with subprocess.Popen(begin, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("runs/*/seed-1/federated/round-0001.json")):
            assert process.poll() is None, "it ended before its first round"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    (run,) = (tmp_path / "runs").iterdir()
    killed = RoundStore(run / "seed-1" / "federated")
    assert 3 not in killed.finished()
    subprocess.run([*line, "--resume", str(run)], check=True, stdout=subprocess.DEVNULL)
    for number in (1, 2, 3):
        whole, resumed = RoundStore(tmp_path / "whole").load(number), killed.load(number)
        assert same(whole.model, resumed.model) and same(whole.outer, resumed.outer)
