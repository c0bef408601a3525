"""The update chain: exact for every bit pattern, and it says whose tensor is wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save

from common.federation import Update
from common.update.chain import chain, decode, encode
from common.update.payload import parse_payload
from common.update.tensors import BadUpdate, State, sha256

STEPS = chain(Update())
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[State, State]:
    """Two states of the same names, shapes and types, of any finite values."""
    before, after = {}, {}
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)):
        shape = draw(SHAPES)
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        values = hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
        for state in (before, after):
            tensor = torch.from_numpy(draw(values)).to(dtype)
            state[name] = torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor))
    return before, after


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


@settings(deadline=None)
@given(pairs())
def test_the_coordinator_gets_the_sites_model_bit_for_bit(states: tuple[State, State]) -> None:
    before, after = states
    received = parse_payload(save(encode(STEPS, before, after, {})[0]), "a")
    decoded = decode(STEPS, before, received, "a")
    assert decoded.keys() == after.keys()
    assert all(torch.equal(bits(decoded[n]), bits(after[n])) and decoded[n].dtype == after[n].dtype for n in after)


@settings(deadline=None)
@given(pairs())
def test_four_bytes_a_float32_two_a_bfloat16(states: tuple[State, State]) -> None:
    before, after = states
    sent = encode(STEPS, before, after, {})[0]
    assert {n: t.element_size() for n, t in sent.items()} == {n: t.element_size() for n, t in before.items()}


@settings(deadline=None)
@given(pairs())
def test_hash_sees_every_change(states: tuple[State, State]) -> None:
    before, after = states
    same = all(torch.equal(bits(before[n]), bits(after[n])) for n in before)
    assert (sha256(before) == sha256(after)) == same


BEFORE = {"w": torch.zeros(2, 3), "b": torch.ones(3)}


def sent_with(**changes: torch.Tensor) -> State:
    return encode(STEPS, BEFORE, BEFORE, {})[0] | changes


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ({"w": torch.zeros(2, 3, dtype=torch.int32)}, "'b' is missing"),
        (sent_with(c=torch.zeros(1, dtype=torch.int32)), "1 tensors that the model has not"),
        (sent_with(w=torch.zeros(3, 2, dtype=torch.int32)), r"'w' has the shape \[3, 2\]"),
        (sent_with(w=torch.zeros(2, 3)), "'w' is float32"),
        (sent_with(b=torch.full((3,), float("nan")).view(torch.int32) - torch.ones(3).view(torch.int32)), "not finite"),
        (sent_with(b=torch.full((3,), float("inf")).view(torch.int32) - torch.ones(3).view(torch.int32)), "not finite"),
    ],
)
def test_refused_by_name(sent: State, fault: str) -> None:
    with pytest.raises(BadUpdate, match=fault) as caught:
        decode(STEPS, BEFORE, sent, "north")
    assert caught.value.what.startswith("north: ")
