import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.update.masks import BLOCK, LONGEST, Mask, add_masks, stream

KEY = bytes(range(32))


def test_the_stream_is_chacha20s_of_the_standard() -> None:
    # RFC 8439, appendix A.1, test vector 1: key and nonce 0, block 0.
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert stream(bytes(32), 0, 8).tobytes().hex() == expected


@given(st.integers(0, 40), st.integers(0, 200))
def test_a_piece_is_the_same_wherever_it_is_begun(blocks: int, count: int) -> None:
    begin = blocks * BLOCK
    np.testing.assert_array_equal(stream(KEY, begin, count), stream(KEY, 0, begin + count)[begin:])


def test_pieces_past_four_gigabytes_are_other_pieces() -> None:
    assert not np.array_equal(stream(KEY, (1 << 30) + BLOCK, 16), stream(KEY, BLOCK, 16))


@pytest.mark.parametrize(("begin", "count"), [(1, 4), (LONGEST, 1), (LONGEST - BLOCK, BLOCK + 1)])
def test_a_stream_is_not_read_where_it_would_repeat(begin: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        stream(KEY, begin, count)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_a_mask_and_its_opposite_cancel(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    masked = values.copy()
    add_masks(masked, [Mask(KEY, 1)])
    assert not np.array_equal(masked, values)
    add_masks(masked, [Mask(KEY, -1)])
    np.testing.assert_array_equal(masked, values)


def test_masked_zeros_are_uniform_in_every_byte() -> None:
    masked = np.zeros(1 << 20, np.uint32)
    add_masks(masked, [Mask(KEY, 1), Mask(KEY[::-1], -1)])
    for place in range(4):
        counts = np.bincount(masked.view(np.uint8)[place::4], minlength=256)
        assert chisquare(counts).pvalue > 1e-4
    assert abs(np.corrcoef(masked[:-1].astype(float), masked[1:].astype(float))[0, 1]) < 0.005
