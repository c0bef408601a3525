"""The coordinator amid a run over a real SuperLink and real nodes: its whole machine goes away and comes
back, its SuperLink lives and answers nothing, its database is locked. The model is the simulation's, bit for bit."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._consortium import SITES, Consortium, running_consortium, simulated
from common.processes import Process
from server.round_store import Checkpoint
from server.serve import SILENT_S
from tests.machines import kill_machine
from tests.test_faults import Run, same, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

AWAY_S = 75.0
"""Ten minutes are played as longer than Flower's heartbeats need (30 to 60 s)."""
LOCKED_S = 20.0
"""SQLite waits 5 s for another process."""


class Watched(Consortium):
    serving: Process

    def serve(self) -> Process:
        self.serving = super().serve()
        return self.serving


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Watched]:
    rounds = {"rounds": 2, "local_steps": 20, "validation_patients": 0, "deadline_s": 1200.0}
    with running_consortium(
        tmp_path_factory.mktemp("watched"), {**tiny_study, "rounds": rounds}, tiny_model, kind=Watched
    ) as made:
        yield made


@pytest.fixture(scope="module")
def expected(consortium: Watched, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return simulated(consortium, tmp_path_factory.mktemp("simulated"), consortium.study)


def test_a_machine_that_is_gone(consortium: Watched, expected: Checkpoint) -> None:
    run = Run(consortium)
    until(lambda: any(run.training(site, 2) for site in SITES), "a step of the second round")
    kill_machine(run.process)
    kill_machine(consortium.serving)
    time.sleep(AWAY_S)
    for site in SITES:
        assert "Connection attempt failed, retrying" in consortium.node_log(site)
    consortium.serve()
    until(lambda: consortium.serving.log.read_text().count("Ready.") == 2, "the coordinator")
    consortium.wait_online()
    run.process = run.start("run", "--resume", run.folder)
    assert same(run.end(), expected)
    assert [event["round"] for event in run.events("round_finished")] == [1, 2], "no round was made twice"


def test_a_superlink_that_lives_and_answers_nothing(consortium: Watched, expected: Checkpoint) -> None:
    """Its process stands still, as one whose threads wait for each other. It is started again, and the run goes on by
    itself or is gone on with."""
    run = Run(consortium)
    until(lambda: any(run.training(site, 1) for site in SITES), "a step at a site")
    silent = consortium.at_coordinator("flower-superlink")
    silent.suspend()
    told = f"the superlink answered nothing for {SILENT_S:.0f} s and was started again"
    until(lambda: told in consortium.serving.log.read_text(), "a SuperLink that is started again")
    assert same(finished(run, consortium), expected)


def test_a_database_that_another_process_locks(consortium: Watched, expected: Checkpoint) -> None:
    run = Run(consortium)
    until(lambda: any(run.training(site, 1) for site in SITES), "a step at a site")
    other = sqlite3.connect(consortium.coordinator.folder / "state.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(LOCKED_S)
    other.execute("ROLLBACK")
    other.close()
    assert same(finished(run, consortium), expected)
    assert "database is locked" in (consortium.coordinator.logs / "superlink.log").read_text()


def finished(run: Run, consortium: Watched) -> Checkpoint:
    """The run's last round. Where Flower has given up the app that leads it, its command says how to go on."""
    until(lambda: not run.process.running, "the run's end")
    if run.process.wait(0) != 0:
        assert f"--resume {run.folder}" in run.process.log.read_text()
        consortium.wait_online()
        run.process = run.start("run", "--resume", run.folder)
    return run.end()
