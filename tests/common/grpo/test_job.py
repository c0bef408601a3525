"""Training as a process of its own: the same bits from one, the same step from several, and how it tells its end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.grpo.job import PROGRESS, Job
from common.grpo.launch import JobEnded, JobOutOfMemory, run_job
from common.grpo.local import LocalResult, LocalTrainer
from common.models.policy import load_policy, load_trainable, trainable_state
from common.study import Study

State = dict[str, Tensor]
PLAIN = "{python} -m common.grpo.job {folder}"
TORCHRUN = "{python} -m torch.distributed.run --standalone --nproc_per_node 2 -m common.grpo.job {folder}"
ZERO = "{python} -m accelerate.commands.launch --config_file {zeroN} --num_processes 2 -m common.grpo.job {folder}"


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.int32), b[n].view(torch.int32)) for n in a)


@pytest.fixture
def in_process(tiny_model: Path, questions: pl.DataFrame) -> Callable[..., tuple[State, LocalResult]]:
    def run(study: Study, folder: Path, first: int, steps: int, state: State) -> tuple[State, LocalResult]:
        policy = load_policy(study, tiny_model)
        load_trainable(policy, state)
        result = LocalTrainer(policy, study, questions, "somewhere").run(first, steps, folder)
        return trainable_state(policy), result

    return run


@pytest.fixture
def job(tiny_model: Path, questions: pl.DataFrame, tmp_path: Path) -> Callable[..., Job]:
    def make(study: Study, first: int = 0, steps: int = 2, state_dir: str = "state") -> Job:
        questions.write_parquet(tmp_path / "questions.parquet")
        return Job(
            study=study,
            model=str(tiny_model),
            questions=str(tmp_path / "questions.parquet"),
            stream="somewhere",
            first_step=first,
            steps=steps,
            state_step=first,
            state_dir=str(tmp_path / state_dir),
            proximal=0.0,
        )

    return make


@pytest.fixture
def base(tiny_model: Path, make_study: Callable[..., Study]) -> State:
    return trainable_state(load_policy(make_study(), tiny_model))


def distance(a: State, b: State) -> float:
    return float(sum(float((a[n].double() - b[n].double()).norm() ** 2) for n in a)) ** 0.5


def last_step(folder: Path) -> int | None:
    progress = folder / PROGRESS
    return int(json.loads(progress.read_text())["step"]) if progress.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (TORCHRUN, {"loss_type": "bnpo"}),
        (ZERO.replace("N", "2"), {"loss_type": "dr_grpo"}),
        (ZERO.replace("N", "3"), {"loss_type": "bnpo", "beta": 0.1}),
    ],
)
def test_two_processes_take_the_steps_of_one(
    make_study: Callable[..., Study],
    in_process: Callable[..., tuple[State, LocalResult]],
    job: Callable[..., Job],
    base: State,
    tmp_path: Path,
    launcher: str,
    settings: dict[str, Any],
) -> None:
    """Within 1e-3 of the way that the weights went: what is left is the order of float32 sums, which AdamW's division
    by small second moments enlarges. Completions, so rewards, are the same. The second round starts from the state
    that one process has written, so a run may change how many there are."""
    study = make_study(**settings, weight_decay=0.1, schedule="cosine")
    want, told = in_process(study, tmp_path / "state", 0, 2, base)
    got, result = run_job(launcher, tmp_path / "job", job(study, state_dir="other"), base)
    assert (result.rewards, result.informative) == (told.rewards, told.informative)
    assert 0 < distance(got, want) < 1e-3 * distance(want, base)
    later, told = in_process(study, tmp_path / "state", 2, 2, want)
    shutil.copy(tmp_path / "state" / "optimizer-2.safetensors", tmp_path / "other")
    got, result = run_job(launcher, tmp_path / "job", job(study, 2, state_dir="other"), want)
    assert result.rewards == told.rewards
    assert 0 < distance(got, later) < 1e-3 * distance(later, want)


@pytest.mark.slow
def test_a_job_that_was_killed_is_started_again(
    make_study: Callable[..., Study],
    in_process: Callable[..., tuple[State, LocalResult]],
    job: Callable[..., Job],
    base: State,
    tmp_path: Path,
) -> None:
    study, folder = make_study(), tmp_path / "job"
    want, told = in_process(study, tmp_path / "one", 0, 2, base)
    # It stops itself as kill -9 would, after its second step and before anything is written.
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom common.grpo import job\n"
        "job.save_whole = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(job.main(Path(sys.argv[1])))\n"
    )
    with pytest.raises(JobEnded, match="-9"):
        run_job(f"{{python}} {killed} {{folder}}", folder, job(study), base)
    assert last_step(folder) == 1
    got, result = run_job(PLAIN, folder, job(study), base)
    assert same(got, want)
    assert (result.rewards, result.informative) == (told.rewards, told.informative)


@pytest.mark.slow
def test_out_of_memory_and_a_users_mistake_are_told_apart(
    make_study: Callable[..., Study], job: Callable[..., Job], base: State, tmp_path: Path
) -> None:
    limited = tmp_path / "limited.py"
    # A real allocation that the system refuses, where the job would begin to work.
    limited.write_text(
        "import sys\nfrom pathlib import Path\nimport torch\nfrom common.grpo import job\n"
        "job.load_policy = lambda *_: torch.empty(2**62, dtype=torch.uint8)\n"
        "sys.exit(job.main(Path(sys.argv[1])))\n"
    )
    with pytest.raises(JobOutOfMemory):
        run_job(f"{{python}} {limited} {{folder}}", tmp_path / "small", job(make_study()), base)
    absent = job(make_study()).model_copy(update={"model": "./no-such-folder"})
    with pytest.raises(UserError, match="cannot work as it is set up"):
        run_job(PLAIN, tmp_path / "mistaken", absent, base)
    assert "is not a folder" in (tmp_path / "mistaken" / "log").read_text()


def test_a_jobs_steps_are_told_while_it_runs(
    make_study: Callable[..., Study], job: Callable[..., Job], base: State, tmp_path: Path
) -> None:
    writes = "; ".join(
        f"echo '{json.dumps({'step': step, 'reward': 0.5, 'time': 0})}' > progress.json; sleep 2.5" for step in (4, 5)
    )
    script = tmp_path / "steps.sh"
    script.write_text(f"{writes}; exit 1\n")
    told: list[tuple[int, float]] = []
    with pytest.raises(JobEnded):
        run_job(f"sh {script} {{folder}}", tmp_path / "job", job(make_study()), base, lambda *step: told.append(step))
    assert told == [(4, 0.5), (5, 0.5)]


def test_a_launcher_that_is_not_there(
    make_study: Callable[..., Study], job: Callable[..., Job], base: State, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no program no-such-launcher"):
        run_job("no-such-launcher {folder}", tmp_path / "job", job(make_study()), base)
