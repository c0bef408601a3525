"""The 8-bit optimiser: bitsandbytes' own, whose state comes back bit for bit, or a sentence where it is missing."""

import sys

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.grpo.optimizer import make_optimizer, restore, state_tensors
from common.study import Grpo

SPEC = Grpo(optimizer="paged_adamw_8bit", learning_rate=0.01, weight_decay=0.1)


def weights(seed: int) -> list[nn.Parameter]:
    """One tensor large enough for 8 bits and one that is not."""
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(96, 64)), nn.Parameter(torch.randn(64))]


def named(parameters: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    return dict(zip(("large", "small"), parameters, strict=True))


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_eight_bit_state_comes_back_bit_for_bit() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra: pip install wardround[eight-bit]")
    through = weights(1)
    before = make_optimizer(through, SPEC)
    for n in range(3):
        step(before, n)
    kept = state_tensors(before, named(through))
    assert kept["state1/large"].dtype == torch.uint8 and kept["state1/small"].dtype == torch.float32
    resumed, afresh = ([nn.Parameter(p.detach().clone()) for p in through] for _ in range(2))
    after = make_optimizer(resumed, SPEC)
    restore(after, named(resumed), kept)
    for optimizer in (before, after, make_optimizer(afresh, SPEC)):
        step(optimizer, 9)
    assert all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(through, afresh, strict=True))


def test_without_bitsandbytes_the_study_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed"):
        make_optimizer(weights(1), SPEC)
