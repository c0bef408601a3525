import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.update import masked as module
from common.update.fixed_point import FixedPoint, OutOfRange
from common.update.masked import add, decoded, masked, places, take_away
from common.update.masks import BLOCK, Mask
from common.update.tensors import State

SHAPES = {"b": (3, 7), "a": (16,), "c": (), "empty": (0, 4), "d": (5, 5, 2)}
KEYS = [bytes([n]) * 32 for n in range(3)]


def update(seed: int) -> State:
    drawn = np.random.default_rng(seed)
    return {name: torch.from_numpy(np.asarray(drawn.uniform(-1, 1, shape))).float() for name, shape in SHAPES.items()}


def test_tensors_begin_at_blocks_and_do_not_overlap() -> None:
    begins, model = places(update(1)), update(1)
    assert all(place % BLOCK == 0 for place in begins.values())
    ends = {name: begins[name] + model[name].numel() for name in model}
    ordered = sorted(begins, key=lambda name: (begins[name], ends[name]))
    assert all(ends[one] <= begins[two] for one, two in zip(ordered, ordered[1:], strict=False))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.sampled_from([16, 1024]))
def test_the_mean_comes_out_of_masked_updates(seed: int, weights: list[float], piece: int) -> None:
    coding, updates = FixedPoint(1.0, 3), [update(seed + n) for n in range(3)]
    pairs = [[Mask(KEYS[0], 1), Mask(KEYS[1], 1)], [Mask(KEYS[0], -1), Mask(KEYS[2], 1)], [Mask(KEYS[1], -1)]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        sent = [masked(*one) for one in zip(updates, [coding] * 3, weights, pairs, strict=True)]
        total = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in SHAPES.items()}
        for one in sent:
            add(total, one)
        take_away(total, [Mask(KEYS[2], -1)])
    mean = dict(decoded(total, coding, sum(weights)))
    for name, values in mean.items():
        plain = sum(w * one[name].double() for w, one in zip(weights, updates, strict=True)) / sum(weights)
        assert values.shape == SHAPES[name] and values.dtype == torch.float64
        assert torch.all((values - plain).abs() <= coding.error(3) / sum(weights) + 1e-15)


def test_no_two_weights_have_the_same_mask() -> None:
    """Updates of nothing but zeros: every number that is sent is another one, in all tensors."""
    zero = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    sent = masked(zero, FixedPoint(1.0, 3), 1.0, [Mask(KEYS[0], 1)])
    rows = torch.cat([tensor.reshape(-1) for tensor in sent.values()])
    assert rows.unique().numel() == rows.numel()


def test_a_value_without_room_is_refused() -> None:
    with pytest.raises(OutOfRange):
        masked({"w": torch.tensor([1.5])}, FixedPoint(1.0, 3), 1.0, [])
