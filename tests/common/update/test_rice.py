"""Codes of numbers and sets: they come back, they are near their entropy, and foreign bytes are refused."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.update.rice import HEAD, UNARY_BITS, Malformed, Reader, pack, pack_set, unpack, unpack_set


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), max_size=50), st.integers(0, 31))
def test_numbers_come_back(numbers: list[int], shift: int) -> None:
    values = np.array(numbers, np.int64) >> shift
    reader = Reader(pack(values))
    assert unpack(reader, len(numbers), 2**31).tolist() == values.tolist()
    reader.ended()
    assert HEAD.unpack(reader.data[: HEAD.size])[2] * 8 <= UNARY_BITS * len(numbers) + 7


@settings(deadline=None)
@given(st.integers(0, 300), st.data())
def test_sets_come_back(total: int, data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, total - 1)))) if total else []
    reader = Reader(pack_set(np.array(chosen, np.int64), total))
    assert unpack_set(reader, total).tolist() == chosen
    reader.ended()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_sets_are_near_their_entropy(share: float) -> None:
    total = 200_000
    members = np.flatnonzero(np.random.default_rng(1).random(total) < share)
    bound = -total * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(pack_set(members, total)) <= 1.08 * bound + HEAD.size + 1


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 100))
def test_foreign_bytes_are_a_set_or_malformed(data: bytes, total: int) -> None:
    try:
        positions = unpack_set(Reader(data), total)
    except Malformed:
        return
    assert positions.size <= total and (np.diff(positions) > 0).all()
    assert positions.size == 0 or 0 <= positions[0] and positions[-1] < total


@pytest.mark.parametrize("size,k,length", [(2**32 - 1, 0, 0), (10, 200, 4), (10, 0, 2**32 - 1), (10, 31, 5)])
def test_announced_sizes_are_not_believed(size: int, k: int, length: int) -> None:
    with pytest.raises(Malformed):
        unpack(Reader(struct.pack("<IBI", size, k, length) + b"\xff" * 8), 100, 1000)
