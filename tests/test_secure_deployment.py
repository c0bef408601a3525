"""A study with a secure sum over a real SuperLink: three hospitals, each a process of its own with its own key."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._consortium import done, last_round, running_consortium, simulated
from server.run_folder import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

THREE = ("synthetic-north", "synthetic-south", "synthetic-east")


def test_a_summed_round_is_the_simulations_bit_for_bit(
    tmp_path: Path, tiny_study: dict[str, Any], tiny_model: Path
) -> None:
    values = {
        **tiny_study,
        "rounds": {"rounds": 1, "local_steps": 1, "validation_patients": 0, "deadline_s": 900.0},
        "update": {"steps": ["difference", "clip"], "clip_norm": 0.5},
        "secure_sum": {"threshold": 2},
    }
    folder = tmp_path / "consortium"
    folder.mkdir()
    with running_consortium(folder, values, tiny_model, THREE) as made:
        done("wardround", "run", made.study, "--coordinator", "coordinator", "--model", tiny_model, folder=folder)
        (run,) = (folder / "runs").iterdir()
        deployed = last_round(run / "seed-1" / "federated")
        events = [event["event"] for event in read_events(run / "events.jsonl")]
        assert events.count("masked_update_received") == len(THREE) and events.count("sum_opened") == 1
        for site in THREE:
            listed = done("wardround-site", "audit", f"sites/{site}.toml", "--state", f"{site}/state", folder=folder)
            assert all(kind in listed for kind in ("Keyed", "Dealt", "Masked", "Agreed", "Opened")), listed
        (simulation := tmp_path / "simulation").mkdir()
        expected = simulated(made, simulation, made.study)
    assert deployed.model.keys() == expected.model.keys()
    assert all(torch.equal(deployed.model[name], value) for name, value in expected.model.items())
