"""What each step promises: exactness, linearity, bounds on what is lost, and refusals of bytes that are not its own."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from common.federation import Update
from common.update.chain import Step, chain, decode, encode
from common.update.clip import norm
from common.update.payload import parse_payload
from common.update.tensors import BadUpdate, State, byte_count, byte_row
from tests.common.update.states import pairs, same

F32, BF16 = (torch.float32,), (torch.bfloat16,)
BOTH = F32 + BF16
LOSSY: list[dict[str, Any]] = [
    {"steps": ("difference", "int8")},
    {"steps": ("difference", "int4")},
    {"steps": ("difference", "topk"), "topk": 0.1},
    {"steps": ("difference", "topk", "int8"), "topk": 0.3},
    {"steps": ("difference", "clip", "topk", "int4"), "topk": 0.5, "clip_norm": 0.01},
]
ALL = [{"steps": ("delta",)}, {"steps": ("difference",)}, {"steps": ("difference", "clip"), "clip_norm": 1.0}, *LOSSY]


def steps(**values: Any) -> list[Step]:
    return chain(Update(**values))


def travelled(sent: State) -> State:
    """Through the bytes of a payload."""
    return parse_payload(save(sent), "north")


@settings(deadline=None, max_examples=60)
@given(pairs(BF16), st.booleans())
def test_sparse_bf16_is_exact(states: tuple[State, State], everything_changed: bool) -> None:
    before, after = states
    way = steps(steps=("sparse-bf16",))
    sent, left = encode(way, before, after, {})
    assert same(decode(way, before, travelled(sent), "north"), after) and left == {}


@settings(deadline=None, max_examples=60)
@given(pairs(BF16, patterns=True))
def test_sparse_bf16_is_exact_for_any_bit_pattern(states: tuple[State, State]) -> None:
    before, after = states
    way = steps(steps=("sparse-bf16",))
    assert same(decode(way, before, encode(way, before, after, {})[0], "north"), after)


@pytest.mark.parametrize("size", [(1 << 14) - 1, 1 << 14, 1 << 16, (1 << 16) + 1, (1 << 21) + 5])
def test_sparse_bf16_over_its_block_borders(size: int) -> None:
    random = np.random.default_rng(size)
    master = torch.from_numpy(random.normal(0, 0.02, size).astype(np.float32))
    before = {"w": master.bfloat16()}
    after = {"w": (before["w"].float() + torch.from_numpy(random.normal(0, 3e-6, size).astype(np.float32))).bfloat16()}
    way = steps(steps=("sparse-bf16",))
    sent, _ = encode(way, before, after, {})
    assert same(decode(way, before, sent, "north"), after)
    assert byte_count(before) / byte_count(sent) > 20


def test_no_change_costs_next_to_nothing() -> None:
    before = {"w": torch.randn(1 << 16, generator=torch.Generator().manual_seed(1)).bfloat16()}
    assert byte_count(encode(steps(steps=("sparse-bf16",)), before, before, {})[0]) < 200


@settings(deadline=None, max_examples=40)
@given(pairs(BOTH))
def test_a_difference_is_the_model_but_for_one_rounding(states: tuple[State, State]) -> None:
    before, after = states
    way = steps(steps=("difference",))
    decoded = decode(way, before, travelled(encode(way, before, after, {})[0]), "north")
    for name, tensor in after.items():
        torch.testing.assert_close(decoded[name], tensor.float(), rtol=2e-7, atol=1e-6 * 2**-20)


@settings(deadline=None, max_examples=40)
@given(pairs(BOTH), st.sampled_from([("difference",), ("difference", "clip")]))
def test_linear_steps_may_be_summed(states: tuple[State, State], names: tuple[str, ...]) -> None:
    """The sum of what two sites send decodes to the sum of their differences."""
    before, after = states
    other = {name: tensor * 0.5 + 0.01 for name, tensor in after.items()}
    way = steps(steps=names, clip_norm=0.1 if "clip" in names else None)
    assert all(step.linear for step in way)
    sent = [encode(way, before, model, {})[0] for model in (after, other)]
    together = decode(way, before, {name: sent[0][name] + sent[1][name] for name in before}, "north")
    apart = [decode(way, before, one, "north") for one in sent]
    for name, model in before.items():
        expected = apart[0][name] + apart[1][name] - model.float()
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(pairs(BOTH), st.sampled_from([1e-6, 0.1, 1e6]))
def test_clipping_bounds_the_whole_update(states: tuple[State, State], bound: float) -> None:
    before, after = states
    sent, left = encode(steps(steps=("difference", "clip"), clip_norm=bound), before, after, {})
    plain = encode(steps(steps=("difference",)), before, after, {})[0]
    assert norm(sent) <= bound * (1 + 1e-6) and left == {}
    if norm(plain) <= bound:
        assert same(sent, plain)


@pytest.mark.parametrize("values", LOSSY)
@settings(deadline=None, max_examples=25)
@given(states=pairs(BOTH))
def test_what_is_lost_is_left_over(values: dict[str, Any], states: tuple[State, State]) -> None:
    """decoded + left over is the (clipped) difference."""
    before, after = states
    way = steps(**values)
    sent, left = encode(way, before, after, {})
    decoded = decode(way, before, travelled(sent), "north")
    shaping = [name for name in values["steps"] if name in ("difference", "clip")]
    whole = steps(steps=shaping, clip_norm=values.get("clip_norm"))
    expected = encode(whole, before, after, {})[0]
    for name, model in before.items():
        scale = float(model.float().abs().max()) if model.numel() else 0.0
        torch.testing.assert_close(
            decoded[name] - model.float() + left[name], expected[name], rtol=1e-5, atol=2**-22 * max(scale, 1e-3)
        )


@pytest.mark.parametrize("values", LOSSY[:4])
def test_error_feedback_adds_up_over_rounds(values: dict[str, Any]) -> None:
    """Over rounds the sum of what was decoded follows the sum of differences: what is missing does not grow."""
    random = torch.Generator().manual_seed(3)
    before = {"w": torch.zeros(500)}
    way, left, total, sums = steps(**values), {}, torch.zeros(500), torch.zeros(500)
    errors = []
    for _ in range(60):
        step = torch.randn(500, generator=random) * 0.01 + 0.01
        sent, left = encode(way, before, {"w": step}, left)
        total += decode(way, before, sent, "north")["w"]
        sums += step
        torch.testing.assert_close(total + left["w"], sums, rtol=1e-4, atol=1e-4)
        errors.append(float((total - sums).norm() / sums.norm()))
    assert errors[-1] < 0.25 * errors[0] or errors[-1] < 0.01


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
@settings(deadline=None, max_examples=40)
@given(states=pairs(F32))
def test_quantised_to_half_a_step(name: str, largest: int, states: tuple[State, State]) -> None:
    before, after = states
    _, left = encode(steps(steps=("difference", name)), before, after, {})
    for tensor_name, lost in left.items():
        change = (after[tensor_name] - before[tensor_name]).abs()
        if change.numel():
            assert float(lost.abs().max()) <= float(change.max()) / largest / 2 * (1 + 1e-4)


@pytest.mark.parametrize(("name", "bytes_each"), [("int8", 1.016), ("int4", 0.563)])
def test_quantised_weights_cost_what_the_guide_says(name: str, bytes_each: float) -> None:
    """docs/updates.md; of an adapter whose tensors fill their blocks."""
    before = {f"layers.{n}.lora_B.weight": torch.zeros(512, 16) for n in range(4)}
    after = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in before.items()}
    sent, _ = encode(steps(steps=("difference", name)), before, after, {})
    assert byte_count(sent) * 4 / byte_count(before) == pytest.approx(bytes_each, abs=5e-4)


def test_blocks_of_zeros_and_of_the_smallest_numbers() -> None:
    after = {"w": torch.cat([torch.zeros(64), torch.full((64,), 1e-45), torch.full((64,), 2.6e-43), torch.ones(64)])}
    before = {"w": torch.zeros(256)}
    for name in ("int8", "int4"):
        way = steps(steps=("difference", name))
        decoded = decode(way, before, encode(way, before, after, {})[0], "north")["w"]
        assert decoded[:64].eq(0).all() and torch.isfinite(decoded).all() and decoded[192:].eq(1).all()


def test_topk_sends_the_largest() -> None:
    before = {"w": torch.zeros(10)}
    after = {"w": torch.tensor([0.0, -9, 1, 2, 0, 8, -3, 0, 0, 0])}
    way = steps(steps=("difference", "topk"), topk=0.3)
    decoded = decode(way, before, encode(way, before, after, {})[0], "north")
    assert decoded["w"].tolist() == [0, -9, 0, 0, 0, 8, -3, 0, 0, 0]


@pytest.mark.parametrize("values", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_does_not_leave(values: dict[str, Any], value: float) -> None:
    with pytest.raises(BadUpdate, match="not finite"):
        encode(steps(**values), {"w": torch.zeros(3)}, {"w": torch.tensor([0.0, value, 1.0])}, {})


def test_a_difference_that_overflows_does_not_leave() -> None:
    with pytest.raises(BadUpdate, match="not finite"):
        encode(steps(**LOSSY[0]), {"w": torch.tensor([-3e38])}, {"w": torch.tensor([3e38])}, {})


BEFORE = {"w": torch.randn(300, generator=torch.Generator().manual_seed(5)), "s": torch.tensor(1.0)}
AFTER = {name: tensor + 0.01 for name, tensor in BEFORE.items()}
SPARSE = {"steps": ("sparse-bf16",)}


def model_for(values: dict[str, Any]) -> tuple[State, State]:
    if values == SPARSE:
        return {n: t.bfloat16() for n, t in BEFORE.items()}, {n: t.bfloat16() for n, t in AFTER.items()}
    return BEFORE, AFTER


@pytest.mark.parametrize("values", [*ALL, SPARSE])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_hostile_tensors_are_refused_or_decoded(values: dict[str, Any], data: st.DataObject) -> None:
    """Any tensor in place of one that was sent: a model of finite values, or a refusal that names the sender."""
    before, after = model_for(values)
    way = steps(**values)
    sent, _ = encode(way, before, after, {})
    name = data.draw(st.sampled_from(sorted(sent)))
    action = data.draw(st.sampled_from(["bytes", "cut", "flip", "shape", "type", "drop", "add"]))
    row = sent[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    if action == "bytes":
        sent[name] = byte_row(data.draw(st.binary(max_size=64)))
    elif action == "cut":
        sent[name] = byte_row(row[: data.draw(st.integers(0, max(0, len(row) - 1)))])
    elif action == "flip" and row:
        flipped = bytearray(row)
        flipped[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
        sent[name] = torch.frombuffer(flipped, dtype=sent[name].dtype).reshape(sent[name].shape)
    elif action == "shape":
        sent[name] = torch.zeros(data.draw(st.sampled_from([(), (0,), (1,), (299,), (20, 15)])), dtype=sent[name].dtype)
    elif action == "type":
        sent[name] = torch.zeros(sent[name].shape, dtype=data.draw(st.sampled_from([torch.float32, torch.uint8])))
    elif action == "drop":
        del sent[name]
    else:
        sent["other"] = torch.zeros(1)
    try:
        decoded = decode(way, before, sent, "north")
    except BadUpdate as bad:
        assert bad.source == "north"
    else:
        assert decoded.keys() == before.keys()
        assert all(decoded[n].shape == t.shape and bool(torch.isfinite(decoded[n]).all()) for n, t in before.items())
