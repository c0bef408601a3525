"""A model on the disk, read a piece at a time: how a fold passes over many sites' models with little memory.

The safetensors format: 8 bytes with the header's length, a JSON header with each tensor's type and place, the bytes.
safetensors' own reader maps the whole file, whose pages then count as this process's memory; a fold over 64 sites
would seem to hold 64 models.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


class ModelFile:
    """An open safetensors file of float32 and bfloat16 tensors; a context manager.

    Attributes:
        sizes: number of values of each tensor, by name.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        length = int.from_bytes(self.file.read(8), "little")
        header = json.loads(self.file.read(length))
        self.tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        self.sizes = {name: math.prod(about["shape"]) for name, about in self.tensors.items()}
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
        about = self.tensors[name]
        dtype = DTYPES[about["dtype"]]
        part = buffer[: (end - begin) * dtype.itemsize]
        self.file.seek(self.start + about["data_offsets"][0] + begin * dtype.itemsize)
        self.file.readinto(part.data)
        return torch.from_numpy(part).view(dtype)
