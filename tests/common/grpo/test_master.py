"""bfloat16 weights under a float32 master: what is below a unit is not lost, over rounds either."""

import torch
from torch import nn

from common.grpo.master import MasterWeights
from common.grpo.proximal import add_pull, anchor


def weights() -> dict[str, nn.Parameter]:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 0.02
    return {"w": nn.Parameter(values.bfloat16()), "norm": nn.Parameter(torch.ones(3))}


def descend(parameters: dict[str, nn.Parameter], residual: dict[str, torch.Tensor], steps: int) -> MasterWeights:
    """Steps of 1e-6 down everywhere."""
    masters = MasterWeights(parameters, residual)
    optimizer = torch.optim.SGD(masters.stepped.values(), lr=1e-6)
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        masters.take_gradients()
        optimizer.step()
        masters.put_back()
    return masters


def test_small_steps_add_up() -> None:
    parameters = weights()
    start = parameters["w"].detach().float()
    masters = descend(parameters, {}, 200)
    moved = start - masters.stepped["w"].detach()
    torch.testing.assert_close(moved, torch.full((1000,), 2e-4), rtol=0.01, atol=1e-8)
    assert torch.equal(parameters["w"], masters.stepped["w"].bfloat16())
    assert masters.stepped["norm"] is parameters["norm"]


def test_two_halves_are_the_whole_bit_for_bit() -> None:
    whole, halves = weights(), weights()
    expected = descend(whole, {}, 60).residual()
    first = descend(halves, {}, 30)
    second = descend(halves, first.residual(), 30)
    assert torch.equal(whole["w"], halves["w"])
    assert torch.equal(second.residual()["w"], expected["w"]) and expected.keys() == {"w"}


def test_fedprox_adds_its_gradient() -> None:
    parameters = {"w": nn.Parameter(torch.tensor([1.0, 2.0])), "still": nn.Parameter(torch.ones(1))}
    toward = anchor(parameters)
    with torch.no_grad():
        parameters["w"] += torch.tensor([0.5, -1.0])
    parameters["w"].grad = torch.zeros(2)
    reference = parameters["w"].detach().clone().requires_grad_()
    (0.3 / 2 * (reference - toward["w"]).square().sum()).backward()
    add_pull(parameters, toward, 0.3)
    assert torch.equal(parameters["w"].grad, reference.grad) and parameters["still"].grad is None
