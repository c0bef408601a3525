"""A model as its difference to another one: exact for every bit pattern, and small after a round."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from common.update.payload import apply_difference, difference, fits, parse_payload, read_payload
from common.update.tensors import BadUpdate, State, byte_count

SHAPES = ((), (0,), (3,), (2, 5), (0, 4))


def patterns(seed: int) -> State:
    """Tensors of random bits, so that every kind of number occurs: signed zeros, infinities, any NaN."""
    draw = np.random.default_rng(seed)
    state = {}
    for n, shape in enumerate(SHAPES):
        count = int(np.prod(shape))
        wide = torch.from_numpy(draw.integers(-(1 << 31), 1 << 31, count).astype(np.int32)).reshape(shape)
        narrow = torch.from_numpy(draw.integers(-(1 << 15), 1 << 15, count).astype(np.int16)).reshape(shape)
        state[f"float{n}"], state[f"bfloat{n}"] = wide.view(torch.float32), narrow.view(torch.bfloat16)
    return state


def bits(state: State) -> dict[str, list]:
    whole = {4: torch.int32, 2: torch.int16}
    return {name: tensor.view(whole[tensor.element_size()]).tolist() for name, tensor in state.items()}


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 1 << 32), second=st.integers(0, 1 << 32))
def test_the_difference_gives_the_model_back_bit_for_bit(first: int, second: int) -> None:
    before, after = patterns(first), patterns(second)
    assert fits(before, after)
    assert bits(apply_difference(before, difference(before, after), "test")) == bits(after)


def test_after_a_small_step_the_difference_is_smaller_than_the_model() -> None:
    torch.manual_seed(1)
    before = {"w": torch.randn(200, 200), "b": torch.randn(20_000).to(torch.bfloat16)}
    after = {name: (tensor + 1e-5 * torch.randn_like(tensor)).to(tensor.dtype) for name, tensor in before.items()}
    sent = difference(before, after)
    assert byte_count(sent) < 0.6 * byte_count(after)
    assert bits(apply_difference(before, sent, "test")) == bits(after)


def test_states_of_other_tensors_have_no_difference() -> None:
    state = {"w": torch.zeros(3)}
    assert not fits(state, {"w": torch.zeros(4)}) and not fits(state, {"v": torch.zeros(3)})
    assert not fits(state, {"w": torch.zeros(3, dtype=torch.bfloat16)})
    assert not fits({"w": torch.zeros(3, dtype=torch.int8)}, {"w": torch.zeros(3, dtype=torch.int8)})


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"w": torch.zeros(3)},
        {"w": torch.zeros(3, dtype=torch.uint8)},
        {"w": torch.zeros(0, dtype=torch.uint8)},
        {"w": difference({"w": torch.zeros(9)}, {"w": torch.ones(9)})["w"]},
        {"w": difference({"w": torch.zeros(2)}, {"w": torch.ones(2)})["w"]},
    ],
)
def test_bytes_that_are_no_difference_to_the_model_are_refused(sent: State) -> None:
    with pytest.raises(BadUpdate):
        apply_difference({"w": torch.zeros(3)}, sent, "the coordinator")


def test_types_that_do_not_travel_are_refused() -> None:
    with pytest.raises(BadUpdate, match="tensor 'w' has the type torch.float64"):
        parse_payload(save({"w": torch.zeros(1, dtype=torch.float64)}), "a site")


def test_a_payload_that_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(BadUpdate, match="no safetensors file"):
        read_payload(tmp_path / "payload", "a site")
