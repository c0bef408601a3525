"""One site federated, that site alone and centralized over that one site are the same computation, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from common.study import Study
from common.update.tensors import State
from server.arm_jobs import taught
from server.centralized import Cohort, train_cohort
from server.frames import build_frames
from server.round_store import RoundStore
from server.run_folder import EventLog, read_events, write_text
from server.simulation import simulate_federated


def federated(study: Study, model: Path, folder: Path, run: str = "identity") -> RoundStore:
    write_text(folder / "study.toml", study.to_toml())
    simulate_federated(folder / "study.toml", study, run, model, folder / "federated", folder / "events.jsonl")
    return RoundStore(folder / "federated")


def pooled(study: Study, model: Path, folder: Path) -> RoundStore:
    frames = build_frames(study, folder / "questions")
    sites = study.sites.train
    cohort = Cohort({s: frames.train(s) for s in sites}, {s: frames.validation(s) for s in sites})
    store = RoundStore(folder / "centralized")
    train_cohort(study, model, cohort, store, EventLog(folder / "central.jsonl", arm="centralized", seed=study.seed))
    return store


def bits(state: State) -> dict[str, list[int]]:
    pattern = {4: torch.int32, 2: torch.int16}
    return {name: t.view(pattern[t.element_size()]).flatten().tolist() for name, t in state.items()}


@pytest.mark.parametrize(
    "model",
    [
        {"trainable": "all"},
        *({"trainable": "lora", "lora": {"average": a}} for a in ("frozen-a", "alternating", "residual", "separate")),
    ],
    ids=["all", "frozen-a", "alternating", "residual", "separate"],
)
def test_one_site_federated_is_centralized(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    study = small_study(sites={"train": ["a"]}, model={"base": str(tiny_model), **model})
    apart, together = federated(study, tiny_model, tmp_path), pooled(study, tiny_model, tmp_path)
    assert apart.finished() == together.finished() == [0, 1, 2]
    for number in apart.finished():
        assert bits(apart.load(number).model) == bits(together.load(number).model)
    assert bits(apart.load(0).model) != bits(apart.load(2).model), "nothing was learned, so nothing was compared"


def test_two_sites_are_not_one(small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path) -> None:
    study = small_study()
    apart, together = federated(study, tiny_model, tmp_path), pooled(study, tiny_model, tmp_path)
    assert bits(apart.load(2).model) != bits(together.load(2).model)


def test_the_same_study_twice_gives_the_same_bits(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study()
    first = federated(study, tiny_model, tmp_path / "first", run="first")
    second = federated(study, tiny_model, tmp_path / "second", run="second")
    assert bits(first.load(2).model) == bits(second.load(2).model)


def test_sites_learn_from_the_same_questions_in_every_arm(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study()
    federated(study, tiny_model, tmp_path)
    frames = build_frames(study, tmp_path / "questions")
    for site in study.sites.train:
        at_site = tmp_path / "federated" / "sites" / site / "studies" / study.hash
        assert pl.read_parquet(at_site / "train.parquet").equals(frames.train(site))
        assert pl.read_parquet(at_site / "validation.parquet").equals(frames.validation(site))


def test_every_arm_follows_the_same_curriculum(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    curriculum = {"drop": ["always_right", "never_right"], "completions": 4, "weights": {"Infection": 2}}
    study = small_study(curriculum=curriculum)
    federated(study, tiny_model, tmp_path)
    frames = build_frames(study, tmp_path / "questions")
    for site in study.sites.train:
        left = taught(study, frames, tiny_model, site)
        folder = tmp_path / "federated" / "sites" / site / "studies" / study.hash
        assert pl.read_parquet(folder / "train.parquet").equals(left)
        rates = pl.read_parquet(folder / "pass_rates.parquet")
        assert rates.equals(pl.read_parquet(frames.folder / "pass_rates" / f"{site}.parquet"))
        shown = left.join(rates, on="question_id")["pass_rate"]
        assert 0 < left.height < frames.train(site).height and 0 < shown.min() and shown.max() < 1
        assert set(left.filter(pl.col("section") == "Infection")["question_id"].value_counts()["count"]) == {2}


def test_a_round_reports_each_site_against_its_own_baseline(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study()
    federated(study, tiny_model, tmp_path)
    events = list(read_events(tmp_path / "events.jsonl"))
    rounds = [e for e in events if e["event"] == "round_finished"]
    baseline = next(e for e in events if e["event"] == "baseline")
    for event in rounds:
        assert set(event["sites"]) == {"a", "b"}
        for site, point in event["sites"].items():
            assert point["baseline"] == baseline["sites"][site]["accuracy"]
            assert point["n_patients"] == 12
        assert event["bytes"]["a"] == event["bytes"]["b"] > 0
    first, second = (event["bytes_down"] for event in rounds)
    # The first round's model was evaluated as round 0 and is there; each next one goes to both as a difference.
    assert 0 < first < 2 * rounds[0]["bytes"]["a"] and 0 < second < 2 * rounds[0]["bytes"]["a"]
