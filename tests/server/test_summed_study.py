"""Whole studies with a secure sum, trained for real, beside the same studies in clear."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.secure_sum import coding_of
from common.study import Study, parse_study
from server.round_store import Checkpoint, RoundStore
from server.run_folder import read_events
from server.simulation import simulate_federated

SITES = ["a", "b", "elsewhere"]
ROUNDS = {"rounds": 1, "local_steps": 1, "validation_patients": 12, "deadline_s": 300}
CLIP = {"steps": ["difference", "clip"], "clip_norm": 0.5}


@pytest.fixture
def study(small_study: Callable[..., Study]) -> Callable[..., Study]:
    def make(**tables: object) -> Study:
        values = {"sites": {"train": SITES}, "rounds": ROUNDS, "update": CLIP, "secure_sum": {"threshold": 2}}
        return small_study(**(values | tables))

    return make


def simulated(study: Study, model: Path, folder: Path) -> Checkpoint:
    file = folder / "study.toml"
    folder.mkdir()
    file.write_text(study.to_toml())
    simulate_federated(file, study, "run", model, folder / "arm", folder / "events.jsonl")
    latest = RoundStore(folder / "arm").latest()
    assert latest is not None
    return latest


def in_clear(study: Study) -> Study:
    values = study.model_dump(mode="json", exclude_none=True)
    del values["secure_sum"]
    return parse_study(values, "test")


def far(one: Checkpoint, two: Checkpoint) -> float:
    return max(float((one.model[name].double() - two.model[name].double()).abs().max()) for name in one.model)


def check_near(summed: Study, model: Path, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """After one round: the bound of the sum, and what float32 rounds of the site's models and of their mean."""
    opened, clear = simulated(summed, model, folder / "sum"), simulated(in_clear(summed), model, folder / "clear")
    rounding = 2 * max(float(tensor.abs().max()) for tensor in clear.model.values()) * 2.0**-24
    bound = coding_of(summed).error(len(SITES)) / len(SITES) + rounding
    assert 0 < far(opened, clear) <= bound
    assert far(RoundStore(folder / "clear" / "arm").load(0), clear) > 100 * bound, "what was learned is far above it"
    return opened, clear


def test_one_round_is_the_plain_mean_within_the_bound(
    study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    opened, clear = check_near(study(), tiny_model, tmp_path)
    for one in (opened, clear):
        assert one.notes["accuracy"] is not None
        for given in one.notes["contributions"].values():
            del given["generating_s"], given["learning_s"]
    assert opened.notes["contributions"] == clear.notes["contributions"], "what else sites tell is the same"
    events = [event["event"] for event in read_events(tmp_path / "sum" / "events.jsonl")]
    assert events.count("site_trained") == events.count("masked_update_received") == len(SITES)
    assert "update_received" not in events


@pytest.mark.slow
@pytest.mark.parametrize("average", ["frozen-a", "alternating"])
def test_adapters_whose_average_is_linear_are_summed(
    study: Callable[..., Study], tiny_model: Path, tmp_path: Path, average: str
) -> None:
    lora = {"base": str(tiny_model), "trainable": "lora", "lora": {"average": average}}
    check_near(study(model=lora), tiny_model, tmp_path)


@pytest.mark.slow
def test_noise_is_added_at_each_site_before_the_masks(
    study: Callable[..., Study], public_codebook: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {
        "questions": {"ask": ["category"], "per_patient": 2, **public_codebook},
        "grpo": {"group_size": 2, "max_completion_tokens": 4, "learning_rate": 1e-2, "loss_type": "dr_grpo"},
        "rounds": {**ROUNDS, "validation_patients": 0},
        "privacy": {"clip": 0.5, "noise_multiplier": 1.0, "sample_rate": 0.1, "patients_per_step": 8,
                    "accountant": "rdp"},
    }  # fmt: skip
    private = study(**tables)
    opened = simulated(private, tiny_model, tmp_path / "sum")
    assert private.privacy is not None
    for site in SITES:
        folder = tmp_path / "sum" / "arm" / "sites" / site
        ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        assert [entry["epsilon"] for entry in ledger] == [private.privacy.epsilon(1)]
        audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
        (trained,) = [entry["detail"] for entry in audit if entry["kind"] == "Learned"]
        assert trained.startswith(f"epsilon {private.privacy.epsilon(1):.4f} after it, update")
        assert trained.endswith("withheld")
    assert opened.notes["contributions"] == {site: {"weight": 1 / 3, "scale": 1.0} for site in SITES}
    again = simulated(private, tiny_model, tmp_path / "again")
    assert all(torch.equal(again.model[name], tensor) for name, tensor in opened.model.items()), "noise is the same"
    assert far(RoundStore(tmp_path / "sum" / "arm").load(0), opened) > 0
