"""A state as a payload: the bytes of a safetensors file, and a model as its difference to one that is there already.

The difference is exact for every bit pattern. Bfloat16 tensors are coded as `sparse_bf16.py` does; of all others the
bit patterns are subtracted as integers, and their bytes of the same weight stand together (the high ones are nearly
all zero after a round) before zstd.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from common.update.delta import PATTERN, Delta
from common.update.sparse_bf16 import SparseBf16
from common.update.tensors import NAMES, BadUpdate, State, byte_row, check_names, to_bytes

ZSTD = pa.Codec("zstd", compression_level=1)


def of_known_types(state: State, source: str) -> State:
    """Raises: BadUpdate."""
    for name, tensor in sorted(state.items()):
        if tensor.dtype not in NAMES:
            raise BadUpdate(source, f"tensor {name!r} has the type {tensor.dtype}")
    return state


def read_payload(path: Path, source: str) -> State:
    """Raises: BadUpdate where the file holds no tensors, or other types of them than travel."""
    try:
        return of_known_types(load_file(path), source)
    except SafetensorError:
        raise BadUpdate(source, "the payload is no safetensors file") from None


def parse_payload(data: bytes, source: str) -> State:
    """Raises: BadUpdate where the bytes hold no tensors, or other types of them than travel."""
    try:
        return of_known_types(load(data), source)
    except SafetensorError:
        raise BadUpdate(source, "the payload is no safetensors file") from None


def interleave(values: np.ndarray) -> bytes:
    """Integers of any width; of each the sign goes into the lowest bit, then all lowest bytes come first, and so on."""
    bits = 8 * values.itemsize
    zigzag = (values << 1) ^ (values >> (bits - 1))
    planes = zigzag.view(np.uint8).reshape(-1, values.itemsize).T
    return bytes(ZSTD.compress(np.ascontiguousarray(planes), asbytes=True))


def disentangle(data: bytes, like: np.ndarray, source: str) -> np.ndarray:
    """Raises: BadUpdate where the bytes are not those of as many integers as `like` has."""
    try:
        plain = ZSTD.decompress(data, decompressed_size=like.nbytes, asbytes=True) if like.size else b""
    except (OSError, ValueError):
        raise BadUpdate(source, "the difference cannot be decompressed") from None
    if len(plain) != like.nbytes:
        raise BadUpdate(source, "the difference has another size than the model")
    planes = np.frombuffer(plain, np.uint8).reshape(like.itemsize, -1)
    zigzag = np.ascontiguousarray(planes.T).view(like.dtype).reshape(-1)
    unsigned = zigzag.view(f"u{like.itemsize}")
    return (unsigned >> 1).view(like.dtype) ^ -(zigzag & 1)


def split(state: State) -> tuple[State, State]:
    """Bfloat16 tensors and all others."""
    sparse = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.bfloat16}
    return sparse, {name: tensor for name, tensor in state.items() if name not in sparse}


def integers(tensor: torch.Tensor) -> np.ndarray:
    return np.frombuffer(to_bytes(tensor), f"i{tensor.element_size()}")


def difference(before: State, after: State) -> State:
    """What turns `before` into `after`, two states of the same names, shapes and types: a row of bytes a tensor."""
    (sparse_before, plain_before), (sparse_after, plain_after) = split(before), split(after)
    sent = SparseBf16().encode(sparse_after, sparse_before)
    for name, change in Delta().encode(plain_after, plain_before).items():
        sent[name] = byte_row(interleave(integers(change)) if change.numel() else b"")
    return sent


def apply_difference(before: State, sent: State, source: str) -> State:
    """The state `after` that `difference` was given, bit for bit.

    Raises:
        BadUpdate: `sent` is no difference to this state.
    """
    check_names(sent, before, source)
    if any(row.dtype != torch.uint8 or row.dim() != 1 for row in sent.values()):
        raise BadUpdate(source, "the difference holds a tensor that is no row of bytes")
    sparse, plain = split(before)
    after = SparseBf16().decode(sent, sparse, source)
    changes = {}
    for name, tensor in plain.items():
        values = disentangle(sent[name].numpy().tobytes(), integers(tensor), source)
        changes[name] = torch.from_numpy(values).reshape(tensor.shape)
    return after | Delta().decode(changes, plain, source)


def fits(before: State, after: State) -> bool:
    """Whether `difference` can be taken: same names, shapes, and types whose bit patterns it subtracts."""
    return before.keys() == after.keys() and all(
        tensor.dtype in PATTERN and (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape)
        for name, tensor in before.items()
    )
