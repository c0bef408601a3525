"""Every step on a tensor of 50 million weights, as large as a large model's: what it promises holds there too."""

from typing import Any

import numpy as np
import pytest
import torch

from common.federation import Update
from common.update.chain import chain, decode, encode
from common.update.tensors import State, byte_count
from tests.common.update.states import same

pytestmark = pytest.mark.slow

SIZE = 50_000_003
"""No multiple of any block."""


def normal(seed: int, scale: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(SIZE, dtype=np.float32)).mul_(scale)


@pytest.fixture(scope="module")
def masters() -> tuple[State, State]:
    """float32 weights before and after a few small steps."""
    before = {"w": normal(1, 0.02)}
    return before, {"w": before["w"] + normal(2, 3e-6)}


@pytest.mark.parametrize(
    ("name", "dtype"), [("delta", torch.float32), ("delta", torch.bfloat16), ("sparse-bf16", torch.bfloat16)]
)
def test_exact_steps(masters: tuple[State, State], name: str, dtype: torch.dtype) -> None:
    before, after = ({n: t.to(dtype) for n, t in state.items()} for state in masters)
    way = chain(Update(steps=(name,)))
    sent, left = encode(way, before, after, {})
    assert left == {} and same(decode(way, before, sent, "north"), after)
    if name == "sparse-bf16":
        assert byte_count(before) / byte_count(sent) > 20


@pytest.mark.parametrize(
    "values",
    [
        {"steps": ("difference",)},
        {"steps": ("difference", "int8")},
        {"steps": ("difference", "int4")},
        {"steps": ("difference", "topk"), "topk": 0.01},
    ],
)
def test_what_is_sent_and_what_is_left_is_the_difference(masters: tuple[State, State], values: dict[str, Any]) -> None:
    before, after = masters
    way = chain(Update(**values))
    sent, left = encode(way, before, after, {})
    decoded = decode(way, before, sent, "north")["w"]
    found = decoded.add_(left["w"]) if left else decoded
    # Two roundings of weights up to about 0.12.
    assert float(found.sub_(after["w"]).abs_().max()) <= 2 * 2**-27
