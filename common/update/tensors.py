"""Named tensors: a state is a flat dict from tensor name to CPU tensor; as a file it is safetensors (`payload.py`)."""

import hashlib
import math
from collections.abc import Collection

import numpy as np
import torch

from common.errors import UserError

State = dict[str, torch.Tensor]

NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
}
"""Types of tensors that travel."""


class BadUpdate(UserError):
    """What a site sent is not a model of the declared names, shapes, types and finite values."""

    def __init__(self, source: str, fault: str) -> None:
        super().__init__(f"{source}: {fault}.", "The update was refused; see the site's own log for the cause.")
        self.source = source
        self.fault = fault


def to_bytes(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        # Strides of an empty tensor may not be those that viewing it as bytes asks for.
        return b""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def byte_row(data: bytes) -> torch.Tensor:
    """Bytes as a tensor (uint8, one dimension)."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def sha256(state: State) -> str:
    """Digest over names, types, shapes and bytes, in sorted order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}\0{NAMES[tensor.dtype]}\0{list(tensor.shape)}\0".encode())
        digest.update(to_bytes(tensor))
    return digest.hexdigest()


def byte_count(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def check_names(state: State, expected: Collection[str], source: str) -> None:
    """Refuse missing and extra tensors.

    Raises:
        BadUpdate: names the source and the first missing tensor, or how many there are too many.
    """
    missing = sorted(set(expected) - state.keys())
    if missing:
        raise BadUpdate(source, f"tensor {missing[0]!r} is missing")
    if len(state) > len(expected):
        raise BadUpdate(source, f"it has {len(state) - len(expected)} tensors that the model has not")


def check_like(state: State, reference: State, source: str, dtypes: dict[str, torch.dtype] | None = None) -> None:
    """Refuse missing, extra, mis-shaped and mis-typed tensors.

    Args:
        dtypes: Type expected of each tensor; those of `reference` unless given.

    Raises:
        BadUpdate: names the source and the first such tensor.
    """
    check_names(state, reference, source)
    for name, model in sorted(reference.items()):
        tensor = state[name]
        if tensor.shape != model.shape:
            raise BadUpdate(
                source, f"tensor {name!r} has the shape {list(tensor.shape)}, the model's is {list(model.shape)}"
            )
        dtype = model.dtype if dtypes is None else dtypes[name]
        if tensor.dtype != dtype:
            raise BadUpdate(source, f"tensor {name!r} is {NAMES[tensor.dtype]}, expected {NAMES[dtype]}")


def check_finite(state: State, source: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        BadUpdate: names the source and the first such tensor.
    """
    for name, tensor in sorted(state.items()):
        # The extremes are NaN where any value is: one pass, and no tensor of flags.
        if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
            raise BadUpdate(source, f"tensor {name!r} has values that are not finite")
