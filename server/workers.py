"""Jobs in processes of their own, one torch thread each; they end when the process that started them ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from common.errors import UserError
from server.run_folder import read_json, write_json

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True)
class Job:
    """One arm of one seed (and, for the arm `local`, of one site)."""

    seed: int
    arm: str
    site: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (f"seed-{self.seed}", self.arm, self.site) if part)


Work = Callable[[Path, Job], None]
"""A module-level function, since it travels to another process by name."""


class JobFailed(Exception):
    """A worker ended with a programming error; its log holds the traceback."""


def log_file(run: Path, job: Job) -> Path:
    return run / "logs" / f"{job.name}.log"


def error_file(run: Path, job: Job) -> Path:
    return run / "logs" / f"{job.name}.error.json"


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, however that dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def enter(parent: int, work: Work, run: Path, job: Job) -> None:
    """What a worker process does: its output goes to a log file, a user's mistake to an error file."""
    die_with(parent)
    log = log_file(run, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    torch.set_num_threads(1)
    try:
        work(run, job)
    except UserError as error:
        traceback.print_exc()
        write_json(error_file(run, job), {"what": error.what, "remedy": error.remedy})
        sys.exit(2)


def explain_failure(run: Path, job: Job, code: int | None) -> Exception:
    if code == 2 and error_file(run, job).exists():
        said = read_json(error_file(run, job))
        return UserError(said["what"], said["remedy"])
    tail = log_file(run, job).read_text(errors="replace")[-3000:] if log_file(run, job).exists() else ""
    return JobFailed(f"{job.name} ended with exit code {code}; see {log_file(run, job)}\n{tail}")


def run_jobs(run: Path, jobs: Sequence[Job], work: Work, workers: int, tick: Callable[[list[Job]], None]) -> None:
    """Do all jobs, `workers` at a time, in order; finished ones stay finished when another fails.

    Args:
        tick: called every `POLL_S` seconds with the jobs that have finished since the last call.

    Raises:
        UserError: what a worker raised.
        JobFailed: a worker crashed.
    """
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: dict[Job, BaseProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                error_file(run, job).unlink(missing_ok=True)
                process: BaseProcess = context.Process(target=enter, args=(os.getpid(), work, run, job), name=job.name)
                process.start()
                running[job] = process
            time.sleep(POLL_S)
            finished = [job for job, process in running.items() if not process.is_alive()]
            for job in finished:
                code = running.pop(job).exitcode
                if code != 0:
                    raise explain_failure(run, job, code)
            tick(finished)
    finally:
        for process in running.values():
            process.kill()
            process.join()
