import pytest
import torch

from benchmarks.update_error import COARSE, error, mean_step


def around(model: dict[str, torch.Tensor], sites: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{name: value + 0.01 * torch.randn_like(value) for name, value in model.items()} for _ in range(sites)]


def test_coarser_numbers_err_more_and_more_sites_do_not_make_it_worse():
    model = {"w": torch.zeros(64, 128)}
    few, many = ([error(model, around(model, sites), coarse) for coarse in COARSE] for sites in (1, 16))
    for errors in (few, many):
        assert 0 < errors[0] < 0.02 < errors[1] < 0.3
    assert many == pytest.approx(few, rel=0.3)


def test_the_mean_step_is_that_of_the_fold():
    model = {"a": torch.ones(2), "b": torch.zeros(1)}
    sites = [{"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([number])} for number in (3.0, 0.0)]
    assert mean_step(model, sites).tolist() == [1.0, 0.0, 1.5]
