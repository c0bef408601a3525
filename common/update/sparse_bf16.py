"""The bfloat16 weights that changed, and by how many units in the last place: exact, and small after a few steps.

At a learning rate of 1e-6 a few steps change few bfloat16 weights, most of them by one unit (arXiv 2602.03839). So
what is sent is which weights changed, and the difference of their ranks in the order of all bfloat16 values.

A unit of a small weight is small, so small weights change often and far, large ones rarely and by one. Both ends
hold the round's model, so the weights are put into classes by its exponents, and each class has codes of its own
(`rice.py`). To stay fast only the smallest weights, about an eighth, are told apart by exponent; all others are
one class.

Lossless for every bit pattern; what a site's float32 master weight gained below a unit stays at the site
(`common/grpo/master.py`). Not linear. Costs 20 to 100 times fewer bytes than the bfloat16 model, and about 8 ns a
weight on one core (`benchmarks/README.md`).
"""

import functools
import struct
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from common.update.rice import Malformed, Reader, Whole, pack, pack_set, unpack, unpack_set
from common.update.tensors import BadUpdate, State, byte_row

BLOCK = 1 << 21
"""Weights coded together: bounds the memory, and lets the codes follow the tensor's parts."""
PIECE = 1 << 16
"""Weights compared at a time: few enough to stay in a core's cache."""
CLASSES = 8
"""Exponents told apart below the cut; the last class holds all smaller ones too."""
CLASSED = 1 << 14
"""Weights from which on classes are worth their heads."""
SMALL_SHARE = 1 / 8
SAMPLE = 64
"""Every 64th weight says where the cut lies."""
PER_WEIGHT = 16
"""Bytes that a block can take at most for each weight, its head apart; bounds what a receiver allocates."""
ZSTD = pa.Codec("zstd", compression_level=1)
SIZES = struct.Struct("<II")
"""A block's length before and after zstd."""


def rank(bits: np.ndarray) -> np.ndarray:
    """int16 bit patterns as int16 ranks: neighbours in value differ by 1; a bijection of all patterns, its own
    inverse."""
    return bits ^ ((bits >> 15) & 0x7FFF)


def cut(before: np.ndarray) -> int:
    """The biased exponent below which about SMALL_SHARE of the weights lie; 0, no classes, for a small tensor."""
    if before.size < CLASSED:
        return 0
    exponents = (before[::SAMPLE] & 0x7FFF) >> 7
    share = np.cumsum(np.bincount(exponents, minlength=256)) / exponents.size
    return int(np.searchsorted(share, SMALL_SHARE, side="right"))


def parts(size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + PIECE, size)) for begin in range(0, size, PIECE))


@functools.cache
def all_positions() -> pl.Series:
    return pl.Series(np.arange(BLOCK, dtype=np.uint32))


def positions(flags: np.ndarray) -> Whole:
    """Where flags are set, of up to BLOCK of them. Polars' filter takes a third of the time of numpy's search."""
    packed = pa.py_buffer(np.packbits(flags, bitorder="little"))
    chosen = pl.Series(pa.BooleanArray.from_buffers(pa.bool_(), flags.size, [None, packed]))
    return all_positions().head(flags.size).filter(chosen).to_numpy().astype(np.int64)


def small_flags(before: np.ndarray, below: int) -> np.ndarray:
    flags = np.empty(before.size, bool)
    for part in parts(before.size):
        np.less(before[part] & 0x7FFF, below << 7, out=flags[part])
    return flags


def changed_flags(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    flags = np.empty(before.size, bool)
    for part in parts(before.size):
        np.not_equal(before[part], after[part], out=flags[part])
    return flags


def classes(before: np.ndarray, small: np.ndarray, below: int) -> list[Whole]:
    """Positions of the small weights, an exponent a class, in an order that both ends know."""
    if below == 0:
        return []
    places = positions(small)
    depths = np.minimum(below - 1 - ((before[places] & 0x7FFF) >> 7), CLASSES - 1).astype(np.uint8)
    ends = np.cumsum(np.bincount(depths, minlength=CLASSES))
    return np.split(places[np.argsort(depths, kind="stable")], ends[:-1])


def pack_differences(before: np.ndarray, after: np.ndarray) -> bytes:
    """The differences in ranks of weights that all changed: signs and magnitudes."""
    differences = rank(after) - rank(before)
    signs = np.packbits(differences < 0).tobytes()
    return signs + pack(np.abs(differences.astype(np.int64)) - 1)


def add_differences(reader: Reader, before: np.ndarray) -> np.ndarray:
    """Raises: Malformed."""
    size = before.size
    negative = np.unpackbits(np.frombuffer(reader.take((size + 7) // 8), np.uint8), count=size)
    magnitudes = unpack(reader, size, 1 << 15) + 1
    if magnitudes.size != size:
        raise Malformed("it holds fewer differences than changes")
    differences = np.where(negative, -magnitudes, magnitudes)
    return rank((rank(before) + differences).astype(np.int16))


def encode_block(before: np.ndarray, after: np.ndarray) -> bytes:
    """One block's bytes: int16 bit patterns of up to BLOCK weights before and after."""
    below = cut(before)
    small, changed = small_flags(before, below), changed_flags(before, after)
    coded = [bytes([below])]
    for members in classes(before, small, below):
        inside = np.flatnonzero(changed[members])
        moved = members[inside]
        coded += [pack_set(inside, members.size), pack_differences(before[moved], after[moved])]
    moved = positions(changed > small)
    coded += [pack_set(moved, before.size), pack_differences(before[moved], after[moved])]
    plain = b"".join(coded)
    squeezed = ZSTD.compress(plain, asbytes=True)
    return SIZES.pack(len(plain), len(squeezed)) + squeezed


def decode_block(reader: Reader, before: np.ndarray) -> np.ndarray:
    """Raises: Malformed."""
    length, squeezed = SIZES.unpack(reader.take(SIZES.size))
    if length > PER_WEIGHT * before.size + 1024:
        raise Malformed("it announces more than there can be")
    try:
        plain = ZSTD.decompress(reader.take(squeezed), decompressed_size=length, asbytes=True)
    except OSError:
        raise Malformed("its zstd frame cannot be read") from None
    block = Reader(plain)
    below = block.take(1)[0]
    after = before.copy()
    for members in classes(before, small_flags(before, below), below):
        moved = members[unpack_set(block, members.size)]
        after[moved] = add_differences(block, before[moved])
    moved = unpack_set(block, before.size)
    after[moved] = add_differences(block, before[moved])
    block.ended()
    return after


def patterns(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.int16).numpy()


class SparseBf16:
    name = "sparse-bf16"
    exact = True
    linear = False
    side = ""
    feeds_back = False

    def like(self, before: State) -> State:
        return before

    def encode(self, values: State, before: State) -> State:
        """One row of bytes (uint8) a tensor."""
        sent = {}
        for name, model in before.items():
            old, new = patterns(model), patterns(values[name])
            blocks = [encode_block(old[n : n + BLOCK], new[n : n + BLOCK]) for n in range(0, old.size, BLOCK)]
            sent[name] = byte_row(b"".join(blocks))
        return sent

    def decode(self, values: State, before: State, source: str) -> State:
        """The site's bfloat16 model, bit for bit.

        Raises:
            BadUpdate: a tensor's bytes are not an encoding for the model's tensor.
        """
        after = {}
        for name, model in before.items():
            if values[name].dtype != torch.uint8 or values[name].dim() != 1:
                raise BadUpdate(source, f"tensor {name!r} is no row of bytes")
            reader, old = Reader(values[name].numpy().tobytes()), patterns(model)
            new = np.empty_like(old)
            try:
                for n in range(0, old.size, BLOCK):
                    new[n : n + BLOCK] = decode_block(reader, old[n : n + BLOCK])
                reader.ended()
            except Malformed as fault:
                raise BadUpdate(source, f"tensor {name!r} cannot be decoded: {fault}") from None
            after[name] = torch.from_numpy(new).view(torch.bfloat16).reshape(model.shape)
        return after
