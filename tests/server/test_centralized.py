"""Pooled training through a launcher, by the command that a user types: two processes do what one does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.grpo.job import JOB
from common.grpo.launch import LOG
from common.study import Study
from common.update.tensors import State
from server.centralized import Cohort, train_cohort
from server.cli import main
from server.frames import Frames
from server.round_store import RoundStore
from server.run_folder import EventLog, RunFolder, read_events
from tests.command import call

TORCHRUN = "{python} -m torch.distributed.run --standalone --nproc_per_node 2 -m common.grpo.job {folder}"


def centralize(study: Study, folder: Path) -> RunFolder:
    """By `wardround centralize`."""
    (folder / "study.toml").write_text(study.to_toml())
    done = call(main, "centralize", folder / "study.toml", "--runs", folder / "runs")
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return RunFolder(run)


def distance(a: State, b: State) -> float:
    return float(sum((a[name].double() - b[name].double()).norm() ** 2 for name in a)) ** 0.5


@pytest.mark.slow
def test_two_processes_centralize_what_one_does(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study(grpo={"group_size": 4, "prompts_per_step": 2, "max_completion_tokens": 4})
    simulation = study.simulation.model_copy(update={"launcher": TORCHRUN})
    run = centralize(study.model_copy(update={"simulation": simulation}), tmp_path)
    folder, frames = run.arm(1, "centralized"), Frames(run.seed(1) / "questions")
    two, one = RoundStore(folder), RoundStore(tmp_path / "one")
    sites = study.sites.train
    cohort = Cohort({s: frames.train(s) for s in sites}, {s: frames.validation(s) for s in sites})
    train_cohort(study, tiny_model, cohort, one, EventLog(tmp_path / "one.jsonl"))

    assert one.finished() == two.finished() == [0, 1, 2]
    moved = distance(one.load(2).model, one.load(0).model)
    assert distance(one.load(0).model, two.load(0).model) == 0
    assert 0 < distance(one.load(2).model, two.load(2).model) < 1e-3 * moved
    job = json.loads((folder / "job" / JOB).read_text())
    # Both sites' questions together, and the second round goes on from the state of the first.
    assert job["study"]["grpo"]["prompts_per_step"] == 4 and job["first_step"] == job["state_step"] == 2
    assert (folder / "job" / LOG).exists()
    told, expected = (
        [e["accuracy"] for e in read_events(path) if e["event"] == "round_finished"]
        for path in (run.events, tmp_path / "one.jsonl")
    )
    assert told == expected and len(told) == 2
