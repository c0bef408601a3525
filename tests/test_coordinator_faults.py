"""What goes wrong at the coordinator's machine amid one run over a real SuperLink and real nodes: its database is
locked, the machine is gone. The model is the simulation's, bit for bit."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks._consortium import SITES, Consortium, running_consortium, simulated
from common.processes import Process
from tests.machines import kill_machine
from tests.test_faults import Run, same, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LOCKED_S = 20.0
"""SQLite waits 5 s for a lock at a SuperLink."""
AWAY_S = 75.0
"""Ten minutes are played as longer than Flower's heartbeats need (30 to 60 s)."""


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


def goes_on(run: Run) -> bool:
    """Whether a run that may have ended is under way; one that ended is resumed, as its last line says."""
    if run.process.running:
        return False
    assert run.process.wait(0) == 2 and "--resume" in run.process.log.read_text()
    run.process = run.start("run", "--resume", run.folder)
    return True


def test_a_database_that_is_locked_and_a_machine_that_is_gone(consortium: Watched, tmp_path: Path) -> None:
    run = Run(consortium)
    until(lambda: any(run.training(site, 1) for site in SITES), "a step at a site")
    with closing(sqlite3.connect(consortium.coordinator.folder / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_S)
        other.execute("ROLLBACK")
    assert "database is locked" in (consortium.coordinator.logs / "superlink.log").read_text()
    for site in SITES:
        consortium.wait_for("the coordinator failed to answer", site)
    consortium.wait_online()
    until(lambda: goes_on(run) or run.events("round_finished"), "the first round, or the run's end")

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
    assert same(run.end(), simulated(consortium, tmp_path, consortium.study))
    assert [event["round"] for event in run.events("round_finished")] == [1, 2], "no round was made twice"
