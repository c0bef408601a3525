import pytest
import torch

from benchmarks.outer_steps import step_ratios
from common.federation import Nesterov, Sgd


def walk(steps: int) -> list[dict[str, torch.Tensor]]:
    """Models that move by the same step each round."""
    return [{"w": torch.full((3,), float(number)), "b": torch.tensor([2.0 * number])} for number in range(steps + 1)]


def test_fedavg_takes_its_own_step():
    assert step_ratios(Sgd(), walk(3)) == [1.0, 1.0, 1.0]
    assert step_ratios(Sgd(lr=0.5), walk(3)) == pytest.approx([0.5, 0.5, 0.5])


def test_nesterov_grows_toward_the_sum_of_its_moments():
    ratios = step_ratios(Nesterov(name="nesterov", lr=0.7, momentum=0.9), walk(60))
    assert ratios[0] == pytest.approx(0.7 * 1.9)
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(0.7 / (1 - 0.9), rel=0.02)
