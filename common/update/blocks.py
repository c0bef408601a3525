"""Differences in 8 or 4 bits: blocks of neighbours share a float32 scale, max |x| over the largest whole number.

    q = round(x / scale),  decoded = q scale

(Dettmers et al. 2021, arXiv 2110.02861, block-wise quantisation; here linear and signed.) Costs 1 byte a parameter
and 4 a block of 256 (int8), or half a byte and 4 a block of 64 (int4). Not exact: what a round loses is fed back in
the next one. Not linear: each site has scales of its own.
"""

import numpy as np
import torch

from common.update.tensors import State, check_like

SCALE = "scale"


PIECE = 1 << 16
"""Values quantised at a time: few enough to stay in a core's cache."""


def in_blocks(flat: np.ndarray, block: int) -> np.ndarray:
    """[blocks, block]; the last one is filled up with zeros."""
    missing = -flat.size % block
    return (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, block)


def quantised(values: torch.Tensor, block: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (int8, as many as values) and scales (float32, one a block)."""
    blocks = in_blocks(values.reshape(-1).numpy(), block)
    whole, scales = np.empty(blocks.shape, np.int8), np.empty(len(blocks), np.float32)
    for begin in range(0, len(blocks), PIECE // block):
        part = slice(begin, begin + PIECE // block)
        scales[part] = np.abs(blocks[part]).max(axis=1, initial=0.0) / np.float32(largest)
        # A block of zeros, or one whose scale is below the smallest float32, is sent as zeros.
        shares = blocks[part] / np.where(scales[part] > 0, scales[part], np.float32(1))[:, None]
        np.rint(shares, out=shares)
        # Where the scale is subnormal, its rounding can carry a share over the edge.
        whole[part] = np.clip(shares, -largest, largest, out=shares)
    return whole.reshape(-1)[: values.numel()], scales


def restored(whole: np.ndarray, scales: np.ndarray, block: int, shape: torch.Size) -> torch.Tensor:
    each = in_blocks(whole, block) * scales[:, None]
    return torch.from_numpy(each.reshape(-1)[: whole.size]).reshape(shape)


class Blocks:
    """What int8 and int4 share; a subclass says how whole numbers become a tensor."""

    name: str
    block: int
    largest: int
    exact = False
    linear = False
    side = SCALE
    feeds_back = True

    def pack(self, whole: np.ndarray, shape: torch.Size) -> torch.Tensor:
        raise NotImplementedError

    def unpack(self, packed: torch.Tensor, size: int) -> np.ndarray:
        raise NotImplementedError

    def packed_like(self, shape: torch.Size) -> torch.Tensor:
        """An empty tensor of the shape and type in which `shape` values travel."""
        raise NotImplementedError

    def encode(self, values: State, before: State) -> State:
        sent = {}
        for name in before:
            whole, scales = quantised(values[name], self.block, self.largest)
            sent[name] = self.pack(whole, values[name].shape)
            sent[f"{name}/{SCALE}"] = torch.from_numpy(scales)
        return values | sent

    def like(self, before: State) -> State:
        return {name: self.packed_like(model.shape) for name, model in before.items()}

    def decode(self, values: State, before: State, source: str) -> State:
        """Differences in float32.

        Raises:
            BadUpdate: numbers or scales are of another shape or type than the model asks for.
        """
        scale_like = {
            f"{n}/{SCALE}": torch.empty(-(-m.numel() // self.block), device="meta") for n, m in before.items()
        }
        expected = self.like(before) | scale_like
        check_like({name: values[name] for name in expected}, expected, source)
        decoded = {name: value for name, value in values.items() if name not in scale_like}
        for name, model in before.items():
            whole = self.unpack(values[name], model.numel())
            decoded[name] = restored(whole, values[f"{name}/{SCALE}"].numpy(), self.block, model.shape)
        return decoded


class Int8(Blocks):
    name = "int8"
    block = 256
    largest = 127

    def pack(self, whole: np.ndarray, shape: torch.Size) -> torch.Tensor:
        return torch.from_numpy(whole).reshape(shape)

    def unpack(self, packed: torch.Tensor, size: int) -> np.ndarray:
        return packed.reshape(-1).numpy()

    def packed_like(self, shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int8, device="meta")


class Int4(Blocks):
    """Two numbers a byte, the first in the low half, each plus 8."""

    name = "int4"
    block = 64
    largest = 7

    def pack(self, whole: np.ndarray, shape: torch.Size) -> torch.Tensor:
        pairs = np.pad(whole + np.int8(8), (0, whole.size % 2)).view("<u2")
        return torch.from_numpy((pairs | pairs >> 4).astype(np.uint8))

    def unpack(self, packed: torch.Tensor, size: int) -> np.ndarray:
        pairs = packed.numpy().astype("<u2")
        return ((pairs | pairs << 4) & 0x0F0F).view(np.int8)[:size] - np.int8(8)

    def packed_like(self, shape: torch.Size) -> torch.Tensor:
        return torch.empty((shape.numel() + 1) // 2, dtype=torch.uint8, device="meta")
