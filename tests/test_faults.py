"""Kills amid a run over a real SuperLink and real nodes: the model is the simulation's, bit for bit.

Lost, repeated and damaged messages need no process to die; they are played in tests/server/test_transfer.py.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from common.processes import Process
from server.round_store import Checkpoint
from server.run_folder import read_events, read_json
from tests.consortium import SITES, Consortium, command, do, last_round, running_consortium, simulated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NORTH, SOUTH = SITES
LONGEST_S = 600.0
"""Flower takes up to a minute to report a killed process, and as long to let a killed node in again; on a loaded
machine each message takes half a minute more."""


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Consortium]:
    rounds = {"rounds": 2, "local_steps": 30, "validation_patients": 0, "deadline_s": 2 * LONGEST_S}
    values = {**tiny_study, "rounds": rounds, "transfer": {"shard_mb": 0.1, "inline_mb": 0.0}}
    with running_consortium(tmp_path_factory.mktemp("faults"), values, tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def expected(consortium: Consortium, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return simulated(consortium, tmp_path_factory.mktemp("simulated"), consortium.study)


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONGEST_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:  # it is whole by now, and has its name
        return 0


class Run:
    """`wardround run` in the background, and what can be seen of it."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        runs = consortium.folder / "runs"
        before = set(runs.iterdir()) if runs.exists() else set()
        self.process = self.start("run", consortium.study, "--model", consortium.model)
        until(lambda: runs.exists() and set(runs.iterdir()) - before, "the run's folder")
        (self.folder,) = set(runs.iterdir()) - before
        self.arm = self.folder / "seed-1" / "federated"

    def start(self, *arguments: object) -> Process:
        return self.consortium.start("run", *command("wardround", *arguments, "--coordinator", "coordinator"))

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["event"] in names]

    def shard_came(self, site: str, number: int) -> bool:
        """Whether some of a site's update lies here, and not all of it."""
        parts = (self.arm / f"received-{number:04d}").glob(f".{site}-*.part")
        return any(size(part) for part in parts)

    def site_files(self, site: str, name: str) -> list[Path]:
        """A file of the run's folder at a site, if it is there."""
        return list((self.consortium.folder / site / "state").glob(f"studies/*/runs/{self.folder.name}/{name}"))

    def training(self, site: str, number: int) -> bool:
        """Whether a site has taken a step of a round, and not its last."""
        noted = [read_json(path) for path in self.site_files(site, "progress.json")]
        return any(note["round"] == number and note["step"] < note["steps"] for note in noted)

    def trained(self, site: str, number: int) -> bool:
        """Whether the site's answer for a round lies on its disk."""
        return any(read_json(path)["asked"]["round"] == number for path in self.site_files(site, "last.json"))

    def end(self) -> Checkpoint:
        until(lambda: not self.process.running, "the run's end")
        assert self.process.wait(0) == 0, self.process.log.read_text()
        return last_round(self.arm)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.round == b.round and all(torch.equal(a.model[name], value) for name, value in b.model.items())


def test_sites_that_die_while_they_train_between_shards_and_while_they_answer(
    consortium: Consortium, expected: Checkpoint
) -> None:
    run = Run(consortium)
    until(lambda: run.training(NORTH, 1), "a step at the first site")
    consortium.at_site(NORTH, "flwr-clientapp").kill()
    until(lambda: run.shard_came(SOUTH, 1), "a shard of the second site's update")
    consortium.at_site(SOUTH, "flower-supernode").kill()

    until(lambda: run.training(NORTH, 2), "a step of the second round")
    node = consortium.at_site(NORTH, "flower-supernode")
    node.suspend()  # so that the answer is made and does not leave
    until(lambda: run.trained(NORTH, 2), "the answer on the first site's disk")
    node.kill()
    (steps,) = run.site_files(NORTH, "steps-0002.json")
    computed = steps.stat().st_mtime_ns

    assert same(run.end(), expected)
    again = {(event["site"], event["round"], event["kind"]) for event in run.events("asked_again")}
    assert {(NORTH, 1, "train"), (SOUTH, 1, "query.shard"), (NORTH, 2, "train")} <= again
    assert steps.stat().st_mtime_ns == computed, "an answer that lay on the disk was computed again"
    consortium.wait_online()


def test_a_command_that_dies_and_a_coordinator_that_dies_between_shards(
    consortium: Consortium, expected: Checkpoint
) -> None:
    """The command's death leaves the coordinator's app alive: it is stopped before another leads the same rounds."""
    run = Run(consortium)
    until(lambda: run.events("sites_asked"), "the first round")
    second = do("wardround", "run", "--resume", run.folder, folder=consortium.folder)
    assert second.returncode == 2 and "another process is at work on this run" in second.stderr
    first = consortium.at_coordinator("flwr-serverapp")
    run.process.child.kill()
    run.process = run.start("run", "--resume", run.folder)
    until(lambda: run.events("resumed"), "the second app's first round")
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert [event["flower_run"] for event in run.events("stopped")] == [run.events("submitted")[0]["flower_run"]]

    until(lambda: any(run.shard_came(site, 1) for site in SITES), "a shard")
    consortium.at_coordinator("flwr-serverapp").kill()
    offered = [event["site"] for event in run.events("update_offered")]
    until(lambda: not run.process.running, "the run's end")
    assert run.process.wait(0) == 2 and "--resume" in run.process.log.read_text()
    run.process = run.start("run", "--resume", run.folder)
    assert same(run.end(), expected)
    again = [event["site"] for event in run.events("update_offered") if event["round"] == 1]
    assert all(again.count(site) == 1 for site in offered), "who had answered was not asked to train again"
    assert len(run.events("submitted")) == 3 and len(run.events("stopped")) == 1


def test_a_superlink_that_dies_while_sites_train(consortium: Consortium, expected: Checkpoint) -> None:
    run = Run(consortium)
    until(lambda: any(run.training(site, 1) for site in SITES), "a step at a site")
    consortium.at_coordinator("flower-superlink").kill()
    assert same(run.end(), expected)
    assert len(run.events("submitted")) == 1, "the run went on by itself"
