"""Golomb-Rice codes of whole numbers and of index sets, a whole array at a time.

A number v is split at bit k: v >> k is written in unary (as many zeros, then a one), the k bits below as they are.
For numbers that fall off geometrically, as gaps between random positions do, k close to log2(mean) comes within a few
per cent of their entropy (Golomb 1966, IEEE Trans. Inf. Theory 12:399; Rice 1979, JPL 79-22). The unary parts of all
numbers stand together, the low bits too, so that numpy reads and writes them without a loop.

A set of positions is the numbers between its neighbours; where more than half of all positions are in it, the
positions that are not. With k = 0 that is the plain bitmap.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

Whole = np.ndarray
"""int64, one dimension, none negative."""

HEAD = struct.Struct("<IBI")
"""How many numbers, k, bytes of the unary part."""
UNARY_BITS = 4
"""Upper bound of unary bits a number, on average: below it by the choice of k, above it the bytes are not ours."""


class Malformed(ValueError):
    """Bytes that `pack` or `pack_set` did not write."""


@dataclass
class Reader:
    """Bytes read from the front."""

    data: bytes
    position: int = 0

    def take(self, size: int) -> bytes:
        """Raises: Malformed where fewer bytes are left."""
        end = self.position + size
        if end > len(self.data):
            raise Malformed("it ends too early")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def ended(self) -> None:
        """Raises: Malformed where bytes are left over."""
        if self.position != len(self.data):
            raise Malformed("it does not end where it should")


def split_bit(values: Whole) -> int:
    """k for numbers of this mean: log2(mean ln 2), rounded down, keeps the unary part under UNARY_BITS a number."""
    return max(0, int(math.log2(max(1.0, float(values.mean()) * math.log(2)))))


def pack(values: Whole) -> bytes:
    """Numbers below 2^32, fewer than 2^32 of them."""
    if values.size == 0:
        return HEAD.pack(0, 0, 0)
    k = split_bit(values)
    ones = np.cumsum((values >> k) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1, np.uint8)
    unary[ones] = 1
    high = np.packbits(unary).tobytes()
    return HEAD.pack(values.size, k, len(high)) + high + low_bits(values, k)


def low_bits(values: Whole, k: int) -> bytes:
    """The k lowest bits of each, the lowest first."""
    if k == 0:
        return b""
    width = 1 if k <= 8 else 4
    # Of whole rows at once: with an axis and a count numpy goes row by row.
    bits = np.unpackbits(values.astype(f"<u{width}").view(np.uint8), bitorder="little").reshape(-1, 8 * width)
    return np.packbits(bits[:, :k]).tobytes()


def unpack(reader: Reader, count: int, limit: int) -> Whole:
    """Numbers that `pack` wrote.

    Args:
        count: as many at most.
        limit: each is below it.

    Raises:
        Malformed: they are not, or the bytes do not say so many numbers.
    """
    size, k, length = HEAD.unpack(reader.take(HEAD.size))
    if size > count or k > 31 or length > (UNARY_BITS * size + 7) // 8:
        raise Malformed("it announces more than there can be")
    unary = np.unpackbits(np.frombuffer(reader.take(length), np.uint8))
    low = np.unpackbits(np.frombuffer(reader.take((size * k + 7) // 8), np.uint8), count=size * k)
    ones = np.flatnonzero(unary)
    if ones.size != size:
        raise Malformed("it holds another number of values than it announces")
    high = np.diff(ones, prepend=-1) - 1
    if size and int(high.max()) > limit >> k:
        raise Malformed("a value is out of range")
    values = (high << k) + low.reshape(size, k) @ (1 << np.arange(k))
    if size and int(values.max()) >= limit:
        raise Malformed("a value is out of range")
    return values


def pack_set(positions: Whole, total: int) -> bytes:
    """Sorted positions below `total`, each once."""
    inverted = 2 * positions.size > total
    if inverted:
        positions = complement(positions, total)
    return bytes([inverted]) + pack(np.diff(positions, prepend=-1) - 1)


def unpack_set(reader: Reader, total: int) -> Whole:
    """Positions that `pack_set` wrote for the same `total`.

    Raises:
        Malformed: the bytes are not of such a set.
    """
    inverted = reader.take(1)[0]
    if inverted > 1:
        raise Malformed("its first byte is neither 0 nor 1")
    positions = np.cumsum(unpack(reader, total, total) + 1) - 1
    if positions.size and int(positions[-1]) >= total:
        raise Malformed("a position is out of range")
    return complement(positions, total) if inverted else positions


def complement(positions: Whole, total: int) -> Whole:
    outside = np.ones(total, bool)
    outside[positions] = False
    return np.flatnonzero(outside)
