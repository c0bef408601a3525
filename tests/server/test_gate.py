"""The held-out gate: which outer steps are taken, what is kept of the others, and going on after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from common.errors import UserError
from common.evaluation.answering import answer
from common.evaluation.scoring import chosen
from common.models.policy import Policy, load_policy, trainable_state
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study
from common.tasks.site_questions import own_codebook, sides_of
from common.update.tensors import State
from server.frames import keep
from server.gate import Gate, gate_questions
from server.round_store import Checkpoint, RoundStore
from server.run_folder import read_events, write_text
from server.simulation import simulate_federated

PUBLIC = "elsewhere"
"""The small sites' third hospital."""


@pytest.fixture
def gated(small_study: Callable[..., Study], tiny_model: Path) -> Callable[..., Study]:
    """A study with a gate; `outer` is its outer optimiser."""

    def make(worse_than: float, outer: dict[str, Any] | None = None) -> Study:
        rounds = {"rounds": 3, "local_steps": 2, "validation_patients": 0, "deadline_s": 60}
        rounds |= {"gate": {"patients": 8, "worse_than": worse_than}, "outer": outer or {"name": "sgd"}}
        return small_study(sites={"train": ["a", "b"], "public": [PUBLIC]}, rounds=rounds)

    return make


def as_the_base_answers(study: Study, model: Path) -> pl.DataFrame:
    """The gate's questions with the base model's own answers for right ones, so that it has them all right."""
    questions = gate_questions(study, 8, None)
    answered = answer(load_policy(study, model), questions, study.evaluation)
    return questions.with_columns(answer=answered.select(chosen("boxed_or_likely").cast(pl.Int64)).to_series())


def run(study: Study, model: Path, folder: Path) -> RoundStore:
    arm = folder / "federated"
    if not (arm / "gate.parquet").exists():
        keep(arm / "gate.parquet", as_the_base_answers(study, model))
    write_text(folder / "study.toml", study.to_toml())
    simulate_federated(folder / "study.toml", study, "gate", model, arm, folder / "events.jsonl")
    return RoundStore(arm)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == name]


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_that_wrecks_the_model_is_not_taken(
    gated: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    # A hundred times the sites' mean difference, with momentum.
    study = gated(0.05, {"name": "nesterov", "lr": 100.0})
    store = run(study, tiny_model, tmp_path)
    base = store.load(0)
    assert base.notes["gate"] == {"accuracy": 1.0}
    for number in (1, 2, 3):
        kept = store.load(number)
        assert same(kept.model, base.model) and kept.outer == {}
        assert kept.notes["gate"]["accuracy"] == 1.0 and kept.notes["gate"]["tried"] < 0.95
    refused = events(tmp_path, "step_refused")
    assert [(event["round"], event["taken"], event["worse_than"]) for event in refused] == [
        (number, False, 0.05) for number in (1, 2, 3)
    ]
    assert refused[0]["fault"].endswith("right on the public cohort after 100.0 %")
    assert [event["gate"]["taken"] for event in events(tmp_path, "round_finished")] == [False] * 3


def test_a_step_within_the_bound_is_taken_and_a_resumed_run_decides_alike(
    gated: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = gated(0.99)
    store = run(study, tiny_model, tmp_path)
    assert not events(tmp_path, "step_refused")
    last = store.load(3)
    assert not same(last.model, store.load(0).model)
    assert last.notes["gate"]["taken"] and last.notes["gate"]["accuracy"] == last.notes["gate"]["tried"]
    for path in (tmp_path / "federated").glob("round-0003*"):
        path.unlink()
    again = run(study, tiny_model, tmp_path).load(3)
    assert same(again.model, last.model) and again.notes["gate"] == last.notes["gate"]


def test_the_bound_is_against_the_model_that_stands(
    gated: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = gated(0.25)
    policy: Policy = load_policy(study, tiny_model)
    gate = Gate(study, policy, as_the_base_answers(study, tiny_model), 0.25)
    good = trainable_state(policy)
    bad = {name: -tensor if "lm_head" in name else tensor for name, tensor in good.items()}
    worst = gate.accuracy(bad)
    assert gate.accuracy(good) == 1.0 and worst < 0.7

    def step(stood: float, model: State) -> Checkpoint:
        before = Checkpoint(4, 8, good, {"w": torch.zeros(1)}, {"gate": {"accuracy": stood}})
        return gate.pass_or_stay(before, Checkpoint(5, 10, model, {"w": torch.ones(1)}, {"more": 1}))

    refused, taken = step(1.0, bad), step(worst + 0.25, bad)
    assert same(refused.model, good) and refused.outer["w"] == 0 and refused.round == 5 and refused.step == 10
    assert refused.notes == {"more": 1, "gate": {"accuracy": 1.0, "tried": worst, "taken": False}}
    assert same(taken.model, bad) and taken.outer["w"] == 1
    assert taken.notes["gate"] == {"accuracy": worst, "tried": worst, "taken": True}
    assert step(worst, good).notes["gate"] == {"accuracy": 1.0, "tried": 1.0, "taken": True}


def test_it_asks_test_patients_of_the_public_cohort(gated: Callable[..., Study], small_sites: Path) -> None:
    study = gated(0.02)
    public = load_registry(read_registry_config(small_sites / f"{PUBLIC}.toml"))
    questions = gate_questions(study, 8, None)
    assert set(questions["site"]) == {PUBLIC} and questions["patient"].n_unique() == 8
    assert set(questions["patient"]) <= set(sides_of(public, study)["test"])
    assert questions.equals(gate_questions(study, 8, own_codebook(public, study)))
    other = gate_questions(study.with_seed(2), 8, None)
    assert set(other["patient"]) != set(questions["patient"])


def test_a_gate_without_a_public_cohort_is_refused(tiny_model: Path) -> None:
    values = {"name": "s", "sites": {"train": ["a"]}, "model": {"base": str(tiny_model)}, "rounds": {"gate": {}}}
    with pytest.raises(UserError, match="sites.public is empty") as refused:
        parse_study(values, "s.toml")
    assert refused.value.remedy.startswith("Name one there")
