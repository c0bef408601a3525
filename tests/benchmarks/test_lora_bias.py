from pathlib import Path

import pytest
import torch

from benchmarks.lora_bias import KeepingStore, chosen_study, distance
from common.models.adapters import FACTOR_A, FACTOR_B, FROZEN
from server.round_store import Checkpoint, write_state


def test_the_distance_is_that_of_the_means_product_to_the_mean_of_products(tmp_path: Path) -> None:
    """Four sites of rank 1 in one dimension: B A is 1, 1, 1 and 9, the factors' means give 1.5 x 1.5, s is 4."""
    study, store = chosen_study("separate", rounds=1, steps=1, seed=1), KeepingStore(tmp_path)
    start = {f"layer{FACTOR_A}": torch.ones(1, 1), f"layer{FACTOR_B}": torch.zeros(1, 1)}
    mean = {name: torch.full((1, 1), 1.5) for name in start}
    for number, model in enumerate((start, mean)):
        store.save(Checkpoint(number, number, model, {}, {}))
    for site, factor in zip(study.sites.train, (1.0, 1.0, 1.0, 3.0), strict=True):
        write_state(store.received(1, site), {name: torch.full((1, 1), factor) for name in start})
    store.drop_received(1)
    base = {f"layer{FROZEN}": torch.full((1, 1), 7.0)}
    assert distance(study, base, store, 1) == pytest.approx((3.0 - 2.25) / 3.0, rel=1e-12)
    corrected = Checkpoint(1, 1, mean | {f"layer{FROZEN}": torch.full((1, 1), 7.0 + 4 * 0.75)}, {}, {})
    store.save(corrected)
    assert distance(study, base, store, 1) == pytest.approx(0.0, abs=1e-12)
