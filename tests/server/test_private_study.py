"""A whole small study with patient-level privacy: what leaves its sites, what they note, and where they stop."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.models.policy import load_policy, trainable_state
from common.study import Study
from server.gathering import RoundFailed
from server.round_store import RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog
from server.simulation import InProcessGrid, load_client_app, site_contexts

PRIVACY = {"clip": 0.5, "noise_multiplier": 1.0, "sample_rate": 0.1, "patients_per_step": 8, "accountant": "rdp"}


@pytest.fixture
def study(small_study: Callable[..., Study], public_codebook: dict[str, str]) -> Study:
    """With a codebook that was made elsewhere."""
    return small_study(
        questions={"ask": ["category"], "per_patient": 2, **public_codebook},
        grpo={"group_size": 2, "max_completion_tokens": 4, "learning_rate": 1e-2, "loss_type": "dr_grpo"},
        rounds={"rounds": 2, "local_steps": 2, "validation_patients": 0, "deadline_s": 300},
        update={"steps": ["difference"]},
        privacy=PRIVACY,
    )


def go(study: Study, model: Path, arm: Path) -> RoundStore:
    importlib.import_module("client.training").in_memory.clear()
    store, log = RoundStore(arm), EventLog(arm / "events.jsonl", arm="federated", seed=1)
    grid = InProcessGrid(load_client_app(), site_contexts(study, arm / "sites"))
    run_rounds(grid, study, "run", model, store, log)
    return store


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_updates_leave_and_no_figure_beside_them(study: Study, tiny_model: Path, tmp_path: Path) -> None:
    store = go(study, tiny_model, tmp_path / "arm")
    base = trainable_state(load_policy(study, tiny_model))
    assert not any(torch.equal(store.load(2).model[name], base[name]) for name in base)
    assert store.load(2).notes["contributions"] == {site: {"weight": 0.5, "scale": 1.0} for site in "ab"}
    assert study.privacy is not None
    spent = [study.privacy.epsilon(2), study.privacy.epsilon(4)]
    for site in "ab":
        folder = tmp_path / "arm" / "sites" / site
        assert [entry["epsilon"] for entry in lines(folder / "ledger.jsonl")] == spent
        told = [entry["detail"] for entry in lines(folder / "audit.jsonl") if entry["kind"] == "Trained"]
        assert told == [f"epsilon {epsilon:.4f} after it" for epsilon in spent]
    words = (tmp_path / "arm" / "events.jsonl").read_text()
    assert all(name not in words for name in ('"patients"', '"questions"', '"reward"', '"informative"'))

    again = go(study, tiny_model, tmp_path / "again")
    assert all(torch.equal(again.load(2).model[name], store.load(2).model[name]) for name in base)


def test_a_site_stops_at_its_own_limit(study: Study, small_sites: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert study.privacy is not None
    folder = tmp_path / "sites"
    folder.mkdir()
    for site in "ab":
        limit = f"[client.policy]\nmax_epsilon = {study.privacy.epsilon(2) + 0.01}\n" if site == "b" else ""
        (folder / f"{site}.toml").write_text((small_sites / f"{site}.toml").read_text() + limit)
    strict = study.model_copy(update={"simulation": study.simulation.model_copy(update={"site_configs": str(folder)})})
    with pytest.raises(RoundFailed, match="none from b"):
        go(strict, tiny_model, tmp_path / "arm")
    assert RoundStore(tmp_path / "arm").finished() == [0, 1]
    assert len(lines(tmp_path / "arm" / "sites" / "b" / "ledger.jsonl")) == 1
    refused = [entry for entry in lines(tmp_path / "arm" / "events.jsonl") if entry["event"] == "site_refused"]
    assert refused and "more privacy than this site has left" in str(refused[0]["fault"])
