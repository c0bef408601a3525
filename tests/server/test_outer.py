"""Outer optimisers: their formulas, their defaults, and going on from a checkpoint."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from common import federation
from common.errors import UserError
from common.study import parse_study
from common.update.tensors import State
from server.outer import Adam, Nesterov, Sgd, next_model, outer_optimizer

OUTER: TypeAdapter[federation.Outer] = TypeAdapter(federation.Outer)


def test_sgd_goes_part_of_the_way() -> None:
    model, mean = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 2.0]).double()
    assert Sgd(federation.Sgd(lr=0.5), {}).step("w", model, mean).tolist() == [2.0, 2.0]


def test_nesterov_equals_torchs() -> None:
    """torch.optim.SGD(nesterov=True) on the pseudo-gradient is the reference."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    reference = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    model, outer = weight.detach().clone(), Nesterov(federation.Nesterov(name="nesterov"), {})
    for _ in range(4):
        mean = torch.randn(5, dtype=torch.float64)
        weight.grad = weight.detach() - mean
        reference.step()
        model = outer.step("w", model, mean)
    assert torch.allclose(model, weight.detach(), atol=1e-12)


def test_adam_takes_its_first_step_by_the_formula() -> None:
    model, mean = torch.tensor([1.0]).double(), torch.tensor([0.0]).double()
    stepped = Adam(federation.Adam(name="adam", lr=0.1), {}).step("w", model, mean)
    expected = 1 - 0.1 * 0.1 / (np.sqrt(0.99 * 1e-6 + 0.01) + 1e-3)
    assert stepped.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimiser_goes_on_from_its_checkpoint(name: str, dtype: torch.dtype) -> None:
    spec = OUTER.validate_python({"name": name, "lr": 0.3})
    means = [{"w": torch.full((3,), n / 7, dtype=torch.float64)} for n in range(4)]
    whole, model = outer_optimizer(spec, {}), {"w": torch.ones(3, dtype=dtype)}
    for mean in means:
        model = next_model(whole, model, mean.items())
    resumed, state = {"w": torch.ones(3, dtype=dtype)}, {}
    for mean in means:
        outer = outer_optimizer(spec, {n: t.clone() for n, t in state.items()})
        resumed, state = next_model(outer, resumed, mean.items()), outer.state
    assert torch.equal(resumed["w"], model["w"])


def test_changes_below_a_bfloat16_unit_add_up() -> None:
    """One of eight sites moves a weight by a unit a round: after eight rounds the mean has moved by a unit."""
    unit = 2.0**-7
    model: State = {"w": torch.ones(4, dtype=torch.bfloat16)}
    outer = outer_optimizer(federation.Sgd(), {})
    for number in range(1, 9):
        mean = {"w": model["w"].double() + unit / 8}
        model = next_model(outer, model, mean.items())
        exact = 1 + number * unit / 8
        assert abs(model["w"][0].item() - exact) <= unit / 2
    assert model["w"].tolist() == [1 + unit] * 4


def study_values(outer: dict[str, Any]) -> dict[str, Any]:
    return {"name": "s", "sites": {"train": ["a"]}, "model": {"base": "/m"}, "rounds": {"outer": outer}}


@pytest.mark.parametrize(("name", "lr"), [("sgd", 1.0), ("nesterov", 0.7), ("adam", 0.01)])
def test_each_has_its_own_default(name: str, lr: float) -> None:
    assert parse_study(study_values({"name": name}), "test").rounds.outer.lr == lr


def test_a_setting_of_another_optimiser_is_refused() -> None:
    with pytest.raises(UserError, match="momentum"):
        parse_study(study_values({"name": "sgd", "momentum": 0.9}), "test")
