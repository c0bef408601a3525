"""Jobs in processes of their own, one torch thread each; they end when the process that started them ends."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from common.errors import UserError
from common.processes import die_with

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


def write_output_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def serve(parent: int, line: Connection, work: Work, run: Path) -> None:
    """What a worker process does: one job after the other, each with a log file for its output.

    It answers None for a job done and a user's mistake as (what, remedy); anything else ends the process.
    """
    die_with(parent)
    import torch

    torch.set_num_threads(1)
    while (job := line.recv()) is not None:
        write_output_to(log_file(run, job))
        try:
            work(run, job)
        except UserError as error:
            traceback.print_exc()
            line.send((error.what, error.remedy))
        else:
            line.send(None)


@dataclass
class Worker:
    process: BaseProcess
    line: Connection
    job: Job | None = None


class Workers:
    """A pool of worker processes; they import the training libraries once, not once a job."""

    def __init__(self, run: Path, work: Work, count: int) -> None:
        self.run, self.work, self.count = run, work, count
        self.all: list[Worker] = []

    def __enter__(self) -> "Workers":
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        # Of workers that are killed when another fails; Python's tracker would speak of their semaphores below the
        # one sentence that a user needs.
        filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:resource_tracker:UserWarning"]
        os.environ["PYTHONWARNINGS"] = ",".join(part for part in filters if part)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self.all:
            if kind is None:
                worker.line.send(None)
            else:
                worker.process.kill()
            worker.process.join()

    def idle(self) -> Worker | None:
        """A worker without a job; a new one where none is and there may be more."""
        found = next((worker for worker in self.all if worker.job is None), None)
        if found is None and len(self.all) < self.count:
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(os.getpid(), there, self.work, self.run))
            process.start()
            there.close()
            found = Worker(process, here)
            self.all.append(found)
        return found

    def do(self, jobs: Sequence[Job], tick: Callable[[list[Job]], None]) -> None:
        """Do all jobs in order, as many at a time as there are workers; what is finished stays when another fails.

        Args:
            tick: called several times a second with the jobs that have finished since the last call.

        Raises:
            UserError: what a worker raised.
            JobFailed: a worker crashed.
        """
        waiting = list(jobs)
        while waiting or any(worker.job for worker in self.all):
            while waiting and (worker := self.idle()) is not None:
                worker.job = waiting.pop(0)
                worker.line.send(worker.job)
            ready = wait([worker.line for worker in self.all if worker.job], POLL_S)
            finished = []
            for worker in self.all:
                if worker.line in ready and worker.job is not None:
                    self.answer(worker, worker.job)
                    finished.append(worker.job)
                    worker.job = None
            tick(finished)

    def answer(self, worker: Worker, job: Job) -> None:
        try:
            said = worker.line.recv()
        except EOFError:
            worker.process.join()
            log = log_file(self.run, job)
            tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            code = worker.process.exitcode
            raise JobFailed(f"{job.name} ended with exit code {code}; see {log}\n{tail}") from None
        if said is not None:
            raise UserError(*said)
