"""The coordinator's whole machine goes away amid a run over a real SuperLink and real nodes, and comes back. The model
is the simulation's, bit for bit."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._consortium import SITES, Consortium, running_consortium, simulated
from common.processes import Process
from tests.machines import kill_machine
from tests.test_faults import Run, same, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

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


def test_a_machine_that_is_gone(consortium: Watched, tmp_path: Path) -> None:
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
    assert same(run.end(), simulated(consortium, tmp_path, consortium.study))
    assert [event["round"] for event in run.events("round_finished")] == [1, 2], "no round was made twice"
