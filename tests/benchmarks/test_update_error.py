import numpy as np
import pytest
import torch

from benchmarks.drift import flat
from benchmarks.update_error import COARSE, error, unflat

MODEL = {"w": torch.zeros(64, 128), "b": torch.zeros(128)}
WEIGHTS = 64 * 128 + 128


def test_coarser_numbers_err_more_and_more_sites_do_not_make_it_worse():
    rng = np.random.default_rng(1)
    few, many = ([error(0.01 * rng.normal(size=(n, WEIGHTS)), MODEL, coarse) for coarse in COARSE] for n in (1, 16))
    for errors in (few, many):
        assert 0 < errors[0] < 0.02 < errors[1] < 0.3
    assert many == pytest.approx(few, rel=0.3)


def test_tensors_are_taken_apart_as_they_were_put_together():
    update = np.random.default_rng(2).normal(size=WEIGHTS).astype(np.float32).astype(np.float64)
    assert (flat(unflat(update, MODEL), MODEL) == update).all()
