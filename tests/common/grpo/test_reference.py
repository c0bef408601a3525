"""The moving reference: TRL's arithmetic, at the declared steps, and a part of the state."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from common.errors import UserError
from common.grpo.reference import MovingReference
from common.study import Grpo, parse_study


def layer(value: float) -> nn.Linear:
    made = nn.Linear(2, 2)
    for parameter in made.parameters():
        nn.init.constant_(parameter, value)
    return made


def value(module: nn.Module) -> float:
    (only,) = {float(x) for p in module.parameters() for x in p.flatten()}
    return only


def test_it_moves_by_its_share_at_every_second_step(tmp_path: Path) -> None:
    reference, policy = layer(0.0), layer(0.0)
    spec = Grpo(beta=0.1, reference_every=2, reference_alpha=0.75)
    moving = MovingReference(reference, policy, spec, tmp_path, Accelerator(cpu=True))
    moving.start(0)
    for parameter in policy.parameters():
        nn.init.constant_(parameter, 8.0)
    moving.after(0)
    assert value(reference) == 0.0
    moving.after(1)
    assert value(reference) == 6.0  # 0.75 x 8 + 0.25 x 0
    moving.after(2)
    moving.after(3)
    assert value(reference) == 7.5  # 0.75 x 8 + 0.25 x 6


def test_it_goes_on_from_what_was_kept_and_starts_afresh_from_the_policy(tmp_path: Path) -> None:
    spec = Grpo(beta=0.1, reference_every=1)
    MovingReference(layer(3.0), layer(5.0), spec, tmp_path, Accelerator(cpu=True)).save(4)
    reference, policy = layer(0.0), layer(5.0)
    moving = MovingReference(reference, policy, spec, tmp_path, Accelerator(cpu=True))
    moving.start(4)
    assert value(reference) == 3.0
    moving.start(0)
    assert value(reference) == 5.0
    with torch.no_grad():
        policy.weight.fill_(9.0)  # a copy, not the policy itself
    assert value(reference) == 5.0


@pytest.mark.parametrize(
    ("grpo", "model", "message"),
    [
        ({"reference_every": 64}, {}, "grpo.beta is 0"),
        ({"reference_every": 64, "beta": 0.1}, {"trainable": "lora"}, "LoRA does not hold"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(grpo: dict, model: dict, message: str) -> None:
    values = {"name": "x", "sites": {"train": ["a"]}, "model": {"base": "some/model", **model}, "grpo": grpo}
    with pytest.raises(UserError, match=message):
        parse_study(values, "test")
