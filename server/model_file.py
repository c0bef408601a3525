"""A model on the disk, read a piece at a time: how a fold passes over many sites' models with little memory.

The safetensors format: 8 bytes with the header's length, a JSON header with each tensor's type and place, the bytes.
safetensors' own reader maps the whole file, whose pages then count as this process's memory; a fold over 64 sites
would seem to hold 64 models.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    begin: int
    """Of its first byte, from the end of the header."""


@lru_cache(maxsize=2)
def places(header: bytes) -> dict[str, Place]:
    """By name. The sites' files of a round have the same header: what is read of it stands in memory once."""
    return {
        name: Place(DTYPES[about["dtype"]], about["data_offsets"][0])
        for name, about in json.loads(header).items()
        if name != "__metadata__"
    }


class ModelFile:
    """An open safetensors file of float32 and bfloat16 tensors; a context manager.

    Attributes:
        tensors: where each lies, by name.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        length = int.from_bytes(self.file.read(8), "little")
        self.tensors = places(self.file.read(length))
        self.start = 8 + length

    def __enter__(self) -> "ModelFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, name: str, begin: int, end: int, buffer: np.ndarray) -> torch.Tensor:
        """Values `begin` to `end` of a tensor, as one row in its own type.

        Args:
            buffer: uint8, where the bytes go; the row is a view of it.
        """
        place = self.tensors[name]
        part = buffer[: (end - begin) * place.dtype.itemsize]
        self.file.seek(self.start + place.begin + begin * place.dtype.itemsize)
        self.file.readinto(part.data)
        return torch.from_numpy(part).view(place.dtype)
