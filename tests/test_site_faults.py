"""What goes wrong at hospitals amid one run over a real SuperLink and real nodes: a job that is killed, a full disk, a
site ten times slower than the rest, a machine that is gone. The model is the simulation's, bit for bit."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks._consortium import SITES, Consortium, done, running_consortium, simulated
from client.egress import REFUSALS
from client.policy import DISK_FULL, JOB_ENDED
from common.processes import Process
from tests.machines import kill_machine
from tests.small_disk import fill, make_room, needs_small_disk, small_disk
from tests.test_faults import Run, same, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_small_disk]

NORTH, SOUTH = SITES
DISK_MIB = 64
SLOWER = 10.0


class Poor(Consortium):
    """The second site's folder lies on a small disk of its own; the first trains in a job."""

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...]) -> None:
        super().__init__(folder, study, model, sites)
        self.joined: dict[str, Process] = {}

    def join(self, site: str) -> Process:
        self.joined[site] = super().join(site)
        return self.joined[site]

    def disk(self) -> Path:
        return self.folder / SOUTH / "state"

    def make(self) -> None:
        super().make()
        with (self.folder / "sites" / f"{NORTH}.toml").open("a") as file:
            file.write('\n[client]\nlauncher = "{python} -m common.grpo.job {folder}"\n')
        self.stack.enter_context(small_disk(self.disk(), DISK_MIB))

    def job(self) -> psutil.Process | None:
        """The first site's training job, where there is one now."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "common.grpo.job" in line and str(self.folder / NORTH) in line[-1]:
                return process
        return None


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Poor]:
    rounds = {"rounds": 1, "local_steps": 200, "validation_patients": 0, "deadline_s": 1200.0, "on_missing": "wait"}
    values = {**tiny_study, "rounds": rounds}
    with running_consortium(tmp_path_factory.mktemp("poor"), values, tiny_model, kind=Poor) as made:
        yield made


@contextmanager
def slowed(consortium: Poor) -> Iterator[None]:
    """Let the first site's job run a tenth of the time."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            job = consortium.job()
            if job is None:
                over.wait(0.1)
                continue
            try:
                job.suspend()
                over.wait(0.1 * (SLOWER - 1))
                job.resume()
            except psutil.NoSuchProcess:
                continue
            over.wait(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()


def refused(run: Run) -> dict[str, str]:
    """Site -> what it said."""
    return {event["site"]: event["fault"] for event in run.events("site_refused")}


def received(run: Run) -> list[str]:
    return [event["site"] for event in run.events("update_received")]


def status(run: Run) -> str:
    return done("wardround", "status", run.folder, folder=run.consortium.folder)


def test_hospitals_that_are_poor_slow_and_gone(
    consortium: Poor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run = Run(consortium)
    until(lambda: run.training(SOUTH, 1), "a step at the second site")
    fill(consortium.disk())
    until(lambda: consortium.job(), "the first site's job")
    job = consortium.job()
    assert job is not None
    job.suspend()
    until(lambda: SOUTH in refused(run), "the second site's refusal")
    assert consortium.at_site(SOUTH, "flower-supernode").is_running()
    kill_machine(consortium.joined[SOUTH])
    make_room(consortium.disk())
    job.kill()  # as the kernel does where the machine's memory is used up

    until(lambda: NORTH in refused(run), "the first site's refusal")
    assert refused(run) == {NORTH: REFUSALS[JOB_ENDED], SOUTH: REFUSALS[DISK_FULL]}
    assert consortium.at_site(NORTH, "flower-supernode").is_running()
    # The round waits a minute before it asks again: by then Flower takes the second site for gone.
    until(lambda: run.training(NORTH, 1) and consortium.job(), "a step at the first site, in the second try")
    with slowed(consortium):
        until(lambda: f"{NORTH} step" in status(run), "the slow site, with its steps, in the column `slow`")
        assert not received(run)
        until(lambda: received(run), "the slow site's update")
    assert run.events("site_away", "asked_again")
    consortium.join(SOUTH)
    assert same(run.end(), simulated(consortium, tmp_path, consortium.study))

    assert [set(event["missing"]) for event in run.events("round_waits")][0] == set(SITES)
    (finished,) = run.events("round_finished")
    assert set(finished["contributions"]) == set(SITES), "the round did not go on with fewer"
    line = ("audit", f"sites/{NORTH}.toml", "--state", f"{NORTH}/state")
    assert "Refused" in done("wardround-site", *line, folder=consortium.folder)
    consortium.wait_online()
