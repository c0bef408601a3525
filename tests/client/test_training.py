"""A site's train message: answered once, however often it is asked, and after rounds that the site missed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from client.egress import REFUSALS
from client.messages import Task
from client.policy import BAD_MODEL, BAD_REQUEST, JOB_ENDED, JOB_OUT_OF_MEMORY, NOT_CONFIGURED, Policy, Refusal
from client.progress import read
from client.replies import Trained
from client.site import Settings, Site
from client.training import SiteStudy
from common.models.policy import load_policy, trainable_state
from common.registry.config import read_registry_config
from common.study import Curriculum, Study, parse_study
from common.update.payload import read_payload
from common.update.tensors import State

SHIPPED = Path(__file__).parents[2] / "site_configs" / "synthetic" / "synthetic-north.toml"


@pytest.fixture
def study(tiny_study: dict[str, Any], tiny_model: Path, request: pytest.FixtureRequest) -> Study:
    """A test may ask for other tables."""
    values = {**tiny_study, "sites": {"train": ["synthetic-north"]}}
    tables = getattr(request, "param", {})
    values["update"] = tables.get("update", {})
    values["model"] = {"base": str(tiny_model), **tables.get("model", {})}
    return parse_study(values | {"rounds": {**tiny_study["rounds"], "rounds": 4}}, "test")


@pytest.fixture
def at_site(study: Study, tmp_path: Path) -> SiteStudy:
    site = Site(read_registry_config(SHIPPED), Settings(policy=Policy(approve_all=True)), tmp_path)
    return SiteStudy(site, study)


@pytest.fixture
def model(study: Study, tiny_model: Path) -> Iterator[State]:
    yield trainable_state(load_policy(study, tiny_model))


def test_the_base_model_is_probed_once(study: Study, tmp_path: Path) -> None:
    """A site that was killed before it had noted the study asks the base model no second time."""
    curriculum = Curriculum(drop=("never_right",), completions=2)
    site = Site(read_registry_config(SHIPPED), Settings(policy=Policy(approve_all=True)), tmp_path)
    at_site = SiteStudy(site, study.model_copy(update={"curriculum": curriculum}))
    first = at_site.configure(None, None)
    plain = SiteStudy(site, study).configure(None, None)
    assert 0 < first.questions < plain.questions
    rates = at_site.folder / "pass_rates.parquet"
    stamp = rates.stat().st_mtime_ns
    (at_site.folder / "study.json").unlink()
    assert at_site.configure(None, None) == first and rates.stat().st_mtime_ns == stamp


def task(number: int) -> Task:
    return Task("run", number, (number - 1) * 2, 2)


def update_of(answer: Trained) -> State:
    return read_payload(answer.outbox.payload(answer.manifest.sha256), "the site")


def learned(answer: Trained) -> bool:
    return any(bool(tensor.any()) for tensor in update_of(answer).values())


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_asked_twice_it_answers_the_same_and_learns_once(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    first = at_site.train(task(1), model)
    states = sorted((at_site.folder / "runs" / "run" / "state").iterdir())
    stamps = [path.stat().st_mtime_ns for path in states]
    noted = read(at_site.folder / "runs" / "run")
    assert noted is not None and (noted.round, noted.step, noted.steps) == (1, 2, 2)
    assert (noted.study, noted.run) == (at_site.study.hash, "run")
    second = at_site.train(task(1), model)
    assert first.manifest == second.manifest and first.generating_s == second.generating_s
    assert [path.stat().st_mtime_ns for path in states] == stamps
    assert learned(first)


def test_another_model_in_the_same_round_is_another_update(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    first = at_site.train(task(1), model)
    other = {name: tensor * 0.5 for name, tensor in model.items()}
    assert at_site.train(task(1), other).manifest != first.manifest
    again = at_site.train(task(1), model)
    assert again.manifest == first.manifest, "the round starts from the state it started from"


def test_a_site_that_missed_rounds_goes_on(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    at_site.train(task(1), model)
    fourth = at_site.train(task(4), model)
    assert at_site.train(task(4), model).manifest == fourth.manifest
    kept = {path.name for path in (at_site.folder / "runs" / "run" / "state").iterdir()}
    assert kept == {"optimizer-2.safetensors", "optimizer-8.safetensors"}


def test_an_update_whose_round_is_folded_is_deleted_and_can_be_computed_again(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    first = at_site.train(task(1), model)
    payload = first.outbox.payload(first.manifest.sha256)
    first.outbox.acknowledged(0)
    first.outbox.approve(first.manifest, first.round)
    first.outbox.acknowledged(0)
    assert payload.exists()
    first.outbox.acknowledged(1)
    assert list(first.outbox.folder.iterdir()) == []
    assert at_site.train(task(1), model).manifest == first.manifest


def test_an_update_that_nobody_acknowledges_goes_in_time(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    first = at_site.train(task(1), model)
    payload = first.outbox.payload(first.manifest.sha256)
    days = at_site.site.settings.keep_days
    os.utime(payload, (time.time() - days * 86400 + 60,) * 2)
    first.outbox.drop_older(days)
    assert payload.exists()
    os.utime(payload, (time.time() - days * 86400 - 60,) * 2)
    first.outbox.drop_older(days)
    assert not payload.exists()


def test_a_site_may_come_late(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    assert at_site.train(task(3), model).round == 3


@pytest.mark.parametrize(
    "asked", [Task("run", 1, 0, 1), Task("run", 2, 0, 2), Task("run", 5, 8, 2), Task("run", 0, 0, 2)]
)
def test_steps_that_the_study_does_not_take_are_refused(at_site: SiteStudy, model: State, asked: Task) -> None:
    """A single step on a batch of the coordinator's choice would rest on a few patients."""
    at_site.configure(None, None)
    with pytest.raises(Refusal) as refused:
        at_site.train(asked, model)
    assert refused.value.code == BAD_REQUEST
    assert not (at_site.folder / "runs").exists()


def test_without_a_study_there_is_nothing_to_train(at_site: SiteStudy, model: State) -> None:
    with pytest.raises(Refusal) as refused:
        at_site.train(task(1), model)
    assert refused.value.code == NOT_CONFIGURED


@pytest.mark.parametrize("fault", ["missing", "shape", "nan"])
def test_a_model_that_is_not_whole_is_refused(at_site: SiteStudy, model: State, fault: str) -> None:
    at_site.configure(None, None)
    name = sorted(model)[0]
    if fault == "missing":
        del model[name]
    else:
        model[name] = torch.zeros(1) if fault == "shape" else model[name] * float("nan")
    with pytest.raises(Refusal) as refused:
        at_site.train(task(1), model)
    assert refused.value.code == BAD_MODEL


@pytest.mark.parametrize("study", [{"update": {"steps": ["difference", "int4"]}}], indirect=True)
def test_what_an_update_does_not_say_is_kept_once_for_the_next(at_site: SiteStudy, model: State) -> None:
    """Whether a round is computed again or not, the next one starts from the same left-over."""
    at_site.configure(None, None)
    state = at_site.folder / "runs" / "run" / "state"
    at_site.train(task(1), model)
    left = load_file(state / "left-over-2.safetensors")
    other = {name: tensor * 0.5 for name, tensor in model.items()}
    at_site.train(task(1), other)
    at_site.train(task(1), model)
    assert same(load_file(state / "left-over-2.safetensors"), left)
    at_site.train(task(2), other)
    second = at_site.train(task(2), model)
    assert {path.name for path in state.glob("left-over-*")} == {"left-over-2.safetensors", "left-over-4.safetensors"}
    # A site that has never seen the other model sends the same.
    fresh = SiteStudy(Site(at_site.site.registry, at_site.site.settings, at_site.site.state / "fresh"), at_site.study)
    fresh.configure(None, None)
    fresh.train(task(1), model)
    assert fresh.train(task(2), model).manifest == second.manifest


BY_TURNS = {"trainable": "lora", "lora": {"average": "alternating"}}


@pytest.mark.parametrize("study", [{"update": {"steps": ["difference", "int4"]}, "model": BY_TURNS}], indirect=True)
def test_what_one_factor_left_over_waits_for_its_next_round(at_site: SiteStudy, model: State) -> None:
    at_site.configure(None, None)
    sent = [update_of(at_site.train(task(number), model)) for number in (1, 2)]
    assert [{"lora_A" in name for name in update} for update in sent] == [{False}, {True}]
    state = at_site.folder / "runs" / "run" / "state"
    first, second = (load_file(state / f"left-over-{step}.safetensors") for step in (2, 4))
    assert first and same(first, {name: second[name] for name in first}) and any("lora_A" in name for name in second)
    third = at_site.train(task(3), model)
    (state.parent / "last.json").unlink()
    (state / "left-over-4.safetensors").unlink()
    assert at_site.train(task(3), model).manifest != third.manifest


LAUNCHER = "{python} -m common.grpo.job {folder}"


def with_launcher(at_site: SiteStudy, folder: Path, launcher: str, vllm: str | None = None) -> SiteStudy:
    settings = at_site.site.settings.model_copy(update={"launcher": launcher, "vllm": vllm})
    return SiteStudy(Site(at_site.site.registry, settings, folder), at_site.study)


@pytest.mark.slow
def test_a_job_of_its_own_sends_the_same_bits(at_site: SiteStudy, model: State, tmp_path: Path) -> None:
    apart = with_launcher(at_site, tmp_path / "apart", LAUNCHER)
    for site in (at_site, apart):
        site.configure(None, None)
    for number in (1, 2):
        here, there = at_site.train(task(number), model), apart.train(task(number), model)
        assert here.manifest == there.manifest
        assert (here.reward, here.informative) == (there.reward, there.informative)
    job = apart.folder / "runs" / "run" / "job"
    assert not list(job.glob("*.safetensors")), "models of past rounds stay on no disk"


def test_how_a_job_ended_leaves_as_a_code(at_site: SiteStudy, model: State, tmp_path: Path) -> None:
    at_site.configure(None, None)
    for code, ends, vllm in (
        (JOB_ENDED, "exit 1", None),
        (JOB_OUT_OF_MEMORY, "echo 3 > failed; exit 1", None),
        (JOB_ENDED, "sleep 60", "sh -c 'exit 1' {model}"),
    ):
        other = with_launcher(at_site, tmp_path, f"sh -c '{ends}' {{folder}}", vllm)
        with pytest.raises(Refusal) as refused:
            other.train(task(1), model)
        assert refused.value.code == code and code in REFUSALS
    # The next try starts from what the first would have.
    assert learned(at_site.train(task(1), model))
