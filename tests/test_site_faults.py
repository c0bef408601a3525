"""What goes wrong at hospitals amid one run over a real SuperLink and real nodes: too little memory for the job, a full
disk, a site ten times slower than the rest, a machine that is gone. The model is the simulation's, bit for bit."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from client.egress import REFUSALS
from client.policy import DISK_FULL, JOB_ENDED, JOB_OUT_OF_MEMORY
from common.processes import Process
from tests.consortium import SITES, Consortium, done, running_consortium, simulated
from tests.small_disk import fill, make_room, needs_small_disk, small_disk
from tests.test_faults import Run, same, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_small_disk]

NORTH, SOUTH = SITES
DISK_MIB = 64
DEADLINE_S = 90.0
"""An hour of absence is played as longer than this, which is longer than Flower's heartbeats need (30 to 60 s)."""
JOB_BYTES = 1_000_000
"""More than its imports took, for the job that is to find too little."""
SLOWER = 10.0


class Poor(Consortium):
    """The second site's folder lies on a small disk of its own; the first trains in a job, under a limit of memory
    while there is the file `limit`."""

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...]) -> None:
        super().__init__(folder, study, model, sites)
        self.joined: dict[str, Process] = {}

    def join(self, site: str) -> Process:
        self.joined[site] = super().join(site)
        return self.joined[site]

    @property
    def limit(self) -> Path:
        return self.folder / "limit"

    def disk(self) -> Path:
        return self.folder / SOUTH / "state"

    def make(self) -> None:
        super().make()
        job = Path(__file__).parent / "tight_job.py"
        with (self.folder / "sites" / f"{NORTH}.toml").open("a") as file:
            file.write(f"\n[client]\nlauncher = '{{python}} {job} {{folder}} {self.limit}'\n")
        self.stack.enter_context(small_disk(self.disk(), DISK_MIB))

    def job(self) -> psutil.Process | None:
        """The first site's training job, where there is one now."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if any(part.endswith("tight_job.py") for part in line) and str(self.limit) in line:
                return process
        return None


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Poor]:
    rounds = {"rounds": 2, "local_steps": 20, "validation_patients": 0, "deadline_s": DEADLINE_S, "on_missing": "wait"}
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


def kill_machine(site: Process) -> None:
    """SIGKILL of `join` and all that it has started, at once."""
    everything = [psutil.Process(site.child.pid), *psutil.Process(site.child.pid).children(recursive=True)]
    for process in everything:
        process.suspend()  # so that none sees another die
    for process in everything:
        os.kill(process.pid, signal.SIGKILL)
    site.child.wait()


def status(run: Run) -> str:
    return done("wardround", "status", run.folder, folder=run.consortium.folder)


def test_hospitals_that_are_poor_slow_and_gone(
    consortium: Poor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.limit.write_text(str(JOB_BYTES))
    run = Run(consortium)
    until(lambda: run.training(SOUTH, 1), "a step at the second site")
    fill(consortium.disk())
    until(lambda: len(run.events("site_refused")) >= len(SITES), "both refusals")
    consortium.limit.unlink()
    make_room(consortium.disk())
    faults = {event["site"]: event["fault"] for event in run.events("site_refused")}
    assert faults[SOUTH] == REFUSALS[DISK_FULL]
    assert faults[NORTH] in (REFUSALS[JOB_OUT_OF_MEMORY], REFUSALS[JOB_ENDED])
    (job,) = run.site_files(NORTH, "job/log")
    assert "emory" in job.read_text()
    assert all(consortium.at_site(site, "flower-supernode").is_running() for site in SITES)

    monkeypatch.setenv("COLUMNS", "300")
    until(lambda: run.training(NORTH, 1), "a step at the first site, in the round's second try")
    with slowed(consortium):
        until(lambda: [event for event in run.events("update_received") if event["site"] == SOUTH], "the fast site")
        until(lambda: f"{NORTH} step" in status(run), "the slow site, with its steps, in the column `slow`")
        until(lambda: run.events("round_finished"), "the end of the slow site's round")
    assert not [event for event in run.events("site_silent") if event["site"] == NORTH], "it was in time"

    until(lambda: consortium.job() is not None and run.training(NORTH, 2), "a step of the second round")
    job_now = consortium.job()
    assert job_now is not None
    job_now.kill()  # as the kernel does where the machine's memory is used up
    until(lambda: run.training(SOUTH, 2) or run.trained(SOUTH, 2), "the second site's second round")
    kill_machine(consortium.joined[SOUTH])
    gone = time.monotonic()
    until(lambda: run.events("site_away"), "the absence at the coordinator")
    consortium.join(SOUTH)
    assert time.monotonic() - gone > 60

    assert same(run.end(), simulated(consortium, tmp_path, consortium.study))
    refused = [(event["site"], event["round"], event["fault"]) for event in run.events("site_refused")]
    assert (NORTH, 2, REFUSALS[JOB_ENDED]) in refused
    assert [event["site"] for event in run.events("site_back")] == [SOUTH]
    weights = [event["contributions"] for event in run.events("round_finished")]
    assert [set(told) for told in weights] == [set(SITES)] * 2, "no round went on with fewer"
    line = ("audit", f"sites/{NORTH}.toml", "--state", f"{NORTH}/state")
    listed = done("wardround-site", *line, folder=consortium.folder)
    assert f"{JOB_ENDED}" in listed
    consortium.wait_online()
