"""Training as a process of its own: the same bits from one, the same step from several, and how it tells its end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
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
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


@pytest.fixture
def in_process(tiny_model: Path, questions: pl.DataFrame) -> Callable[..., tuple[State, LocalResult]]:
    def run(
        study: Study, folder: Path, first: int, steps: int, state: State, proximal: float = 0.0
    ) -> tuple[State, LocalResult]:
        policy = load_policy(study, tiny_model)
        load_trainable(policy, state)
        trainer = LocalTrainer(policy, study, questions, "somewhere")
        result = trainer.run(first, steps, folder, proximal=proximal)
        return trainable_state(policy), result

    return run


@pytest.fixture
def job(tiny_model: Path, questions: pl.DataFrame, tmp_path: Path) -> Callable[..., Job]:
    def make(
        study: Study, first: int = 0, state_dir: str = "state", proximal: float = 0.0, steps: int = 2
    ) -> Job:
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
            proximal=proximal,
        )

    return make


@pytest.fixture
def base(tiny_model: Path, make_study: Callable[..., Study]) -> State:
    return trainable_state(load_policy(make_study(), tiny_model))


def distance(a: State, b: State) -> float:
    return float(sum(float((a[n].double() - b[n].double()).norm() ** 2) for n in a)) ** 0.5


def means(state: Path) -> State:
    """AdamW's running means of the gradients."""
    return {name: value for name, value in load_file(state).items() if name.startswith("exp_avg/")}


def last_step(folder: Path) -> int | None:
    progress = folder / PROGRESS
    return int(json.loads(progress.read_text())["step"]) if progress.exists() else None


REFERENCE = {"beta": 0.1, "reference_every": 1}
SPLIT = {"prompts_per_step": 3}
"""3 groups of 4 on 2 processes: the second group lies on both."""
LORA = {"trainable": "lora", "dtype": "bfloat16", "prefix_route": "packed", "groups_at_once": 1, "beta": 0.04}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings", "proximal"),
    [
        (TORCHRUN, {"loss_type": "bnpo", "dynamic_sampling": 1, "learning_rate": 1e-3, **SPLIT}, 0.0),
        (TORCHRUN, {"loss_type": "dapo", **LORA}, 0.0),
        (ZERO.replace("N", "2"), {"loss_type": "dr_grpo", **REFERENCE, **SPLIT}, 3.0),
        (ZERO.replace("N", "3"), {"loss_type": "dapo", "groups_at_once": 1, **REFERENCE, **SPLIT}, 3.0),
    ],
)
def test_two_processes_take_the_steps_of_one(
    make_study: Callable[..., Study],
    in_process: Callable[..., tuple[State, LocalResult]],
    job: Callable[..., Job],
    tiny_model: Path,
    tmp_path: Path,
    launcher: str,
    settings: dict[str, Any],
    proximal: float,
) -> None:
    """Within 1e-3 of the way that the weights went: what is left is the order of float32 sums, which AdamW's division
    by small second moments enlarges. Within 5e-2 where a group is split: gradients that cancel within it are taken on
    two processes, so what is left of them is rounding, and one weight that goes the other way for it is 1e-2. The
    gradients' means are then within 5e-3. Completions, so rewards, are the same. The second round starts from the state
    that one process has written, so a run may change how many there are."""
    study = make_study(**settings, weight_decay=0.1, schedule="cosine")
    tolerance = 1e-3 if study.grpo.prompts_per_step % 2 == 0 else 5e-2
    one, two = tmp_path / "state", tmp_path / "other"
    before = trainable_state(load_policy(study, tiny_model))
    for first in (0, 2):
        for kept in one.glob(f"*-{first}.safetensors"):
            shutil.copy(kept, two)
        want, told = in_process(study, one, first, 2, before, proximal)
        got, result = run_job(launcher, tmp_path / "job", job(study, first, "other", proximal), before)
        assert (result.rewards, result.informative) == (told.rewards, told.informative)
        assert 0 < distance(got, want) < tolerance * distance(want, before)
        mean, expected = (means(folder / f"optimizer-{first + 2}.safetensors") for folder in (two, one))
        assert distance(mean, expected) < 5e-3 * distance(expected, {n: torch.zeros_like(t) for n, t in mean.items()})
        if study.grpo.reference_every:
            moved, reference = (load_file(folder / f"reference-{first + 2}.safetensors") for folder in (two, one))
            assert distance(moved, reference) < tolerance * distance(reference, before)
        before = want


@pytest.mark.slow
def test_lora_under_zero_keeps_the_bits_of_its_factors(
    make_study: Callable[..., Study],
    in_process: Callable[..., tuple[State, LocalResult]],
    job: Callable[..., Job],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """DeepSpeed casts the factors, which one process keeps in float32, so a completion may come out otherwise; its
    masters begin with all of their bits. Two steps here are far below the last place of a bfloat16."""
    study = make_study(**LORA, learning_rate=1e-6)
    torch.manual_seed(1)
    base = {n: 0.05 * torch.randn(t.shape) for n, t in trainable_state(load_policy(study, tiny_model)).items()}
    want, _ = in_process(study, tmp_path / "state", 0, 2, base)
    got, _ = run_job(ZERO.replace("N", "3"), tmp_path / "job", job(study, state_dir="other"), base)
    assert 0.5 < distance(got, base) / distance(want, base) < 2
    rounded = {name: value.bfloat16().float() for name, value in base.items()}
    assert distance(rounded, base) > 20 * distance(got, base)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_several_processes_go_on_bit_for_bit(
    make_study: Callable[..., Study],
    in_process: Callable[..., tuple[State, LocalResult]],
    job: Callable[..., Job],
    tiny_model: Path,
    tmp_path: Path,
    optimizer: str,
) -> None:
    """bfloat16, moving reference, groups one after the other. 8-bit state is for as many processes alone."""
    if optimizer == "paged_adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra: pip install wardround[eight-bit]")
    study = make_study(optimizer=optimizer, dtype="bfloat16", groups_at_once=1, **REFERENCE)
    base = trainable_state(load_policy(study, tiny_model))
    launcher, folder = ZERO.replace("N", "3"), tmp_path / "job"
    through, _ = run_job(launcher, folder, job(study, state_dir="through", steps=4), base)
    half, _ = run_job(launcher, folder, job(study, state_dir="halves"), base)
    got, _ = run_job(launcher, folder, job(study, 2, "halves"), half)
    assert same(got, through) and not same(got, half)
    for kept in ("optimizer-4.safetensors", "reference-4.safetensors"):
        assert (tmp_path / "halves" / kept).read_bytes() == (tmp_path / "through" / kept).read_bytes()
    if optimizer == "paged_adamw_8bit":
        with pytest.raises(UserError, match="under ZeRO-3 with 2 processes and cannot be read under no DeepSpeed"):
            in_process(study, tmp_path / "halves", 2, 2, half)


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
