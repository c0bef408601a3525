"""Starts local training as a job (common/grpo/job.py) and reads what became of it."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import common
from common.errors import UserError
from common.grpo.hacking import Signs
from common.grpo.job import FAILED, JOB, MISTAKE, MODEL, OUT_OF_MEMORY, PROGRESS, RESULT, SAMPLER, TRAINED, Job
from common.grpo.local import LocalResult
from common.grpo.vllm import serving
from common.launcher import TrainingJobs, command
from common.models.policy import Policy, load_trainable, trainable_state
from common.processes import Process
from common.study import Study

LOG, SERVER_LOG = "log", "vllm.log"
LOOK_S = 1.0
"""How often the job's progress is looked at."""


class JobOutOfMemory(Exception):
    """The job's memory, or its device's, did not suffice."""


class JobEnded(Exception):
    """The job ended without a result: it crashed, or was killed."""


def environment() -> dict[str, str]:
    """The job runs the very code that runs here, with as many threads, so that it computes the same bits."""
    code = str(Path(str(common.__file__)).parents[1])
    path = os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def run_job(
    launcher: str,
    folder: Path,
    job: Job,
    model: dict[str, Tensor],
    on_step: Callable[[int, float], None] | None = None,
    vllm: str | None = None,
) -> tuple[dict[str, Tensor], LocalResult]:
    """Train in a process of its own and wait for it; its output is appended to `folder/log`.

    Args:
        folder: the job's own; what lies there of an earlier start is overwritten.
        model: the round's trainable tensors.
        on_step: called with the last step taken and its mean reward, each time that another is seen.
        vllm: the command of a server that samples for the job; its output is appended to `folder/vllm.log`.

    Returns:
        the trained tensors and what the training was like.

    Raises:
        UserError: the launcher's program is not there, or the job says that its user made a mistake.
        JobOutOfMemory, JobEnded: the node that started it lives on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, FAILED, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    save_file(model, folder / MODEL)
    words = command(launcher, folder)
    variables = environment()
    if shutil.which(words[0], path=variables.get("PATH")) is None:
        raise UserError(f"launcher: there is no program {words[0]}.", "Give its whole path.")
    with ExitStack() as running:
        server = None
        if vllm is not None:
            server, place = running.enter_context(serving(vllm, job.model, job.study, folder / SERVER_LOG))
            job = job.model_copy(update={"server": str(place)})
        (folder / JOB).write_text(job.model_dump_json(exclude_none=True), encoding="utf-8")
        process = running.enter_context(Process(words, folder / LOG, variables, folder))
        status = watch(process, server, folder, on_step)
    if (folder / RESULT).exists():
        trained = load_file(folder / TRAINED)
        for name in (MODEL, TRAINED):
            (folder / name).unlink()
        shutil.rmtree(folder / SAMPLER, ignore_errors=True)
        told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return trained, LocalResult(**{**told, "signs": [Signs(**signs) for signs in told["signs"]]})
    code = int((folder / FAILED).read_text(encoding="utf-8")) if (folder / FAILED).exists() else status
    if code == MISTAKE:
        raise UserError(f"{folder}: the training job cannot work as it is set up.", f"See the end of {folder / LOG}.")
    if code == OUT_OF_MEMORY:
        raise JobOutOfMemory(f"see {folder / LOG}")
    raise JobEnded(f"exit status {status}; see {folder / LOG}")


def watch(
    process: Process, server: Process | None, folder: Path, on_step: Callable[[int, float], None] | None
) -> int:
    """The job's exit status; see `run_job`.

    Raises:
        JobEnded: its server ended before it, and the job would wait for it for ever.
    """
    seen = None
    while (status := process.wait(LOOK_S)) is None:
        told = last_step(folder)
        if on_step is not None and told is not None and told != seen:
            seen = told
            on_step(*told)
        if server is not None and not server.running:
            raise JobEnded(f"the vLLM server ended; see {server.log}")
    return status


def last_step(folder: Path) -> tuple[int, float] | None:
    """The last step that the job has taken, and its mean reward; None before the first."""
    if not (folder / PROGRESS).exists():
        return None
    told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return int(told["step"]), float(told["reward"])


@dataclass(frozen=True)
class JobTrainer:
    """What `LocalTrainer` does, as a job: from the weights in the policy, where the trained ones are put.

    Args:
        model: folder or hub name of the base model; questions: Parquet file of a question frame.
        stream: see `LocalTrainer`; settings: this machine's, with a launcher; folder: the job's.
    """

    policy: Policy
    study: Study
    model: str
    questions: Path
    stream: str
    settings: TrainingJobs
    folder: Path

    def run(
        self,
        first_step: int,
        steps: int,
        state_dir: Path,
        on_step: Callable[[int, float], None] | None = None,
        state_step: int | None = None,
        proximal: float = 0.0,
    ) -> LocalResult:
        """See `LocalTrainer.run`, except that `on_step` may miss steps; raises what `run_job` does."""
        job = Job(
            study=self.study,
            model=self.model,
            questions=str(self.questions.absolute()),
            stream=self.stream,
            first_step=first_step,
            steps=steps,
            state_step=first_step if state_step is None else state_step,
            state_dir=str(state_dir.absolute()),
            proximal=proximal,
        )
        launcher = self.settings.launcher
        assert launcher is not None
        device = next(self.policy.model.parameters()).device
        # The job needs the whole of a GPU.
        self.policy.model.to("cpu")
        torch.cuda.empty_cache()
        try:
            state, folder = trainable_state(self.policy), self.folder.absolute()
            trained, result = run_job(launcher, folder, job, state, on_step, self.settings.vllm)
        finally:
            self.policy.model.to(device)
        load_trainable(self.policy, trained)
        return result
