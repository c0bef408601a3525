"""A secure sum of updates, a piece of a tensor at a time: masked at a site, added and opened at the coordinator.

Each tensor's stream of masks begins at its own place, a multiple of a ChaCha20 block, in the order of the names. What
is sent are the tensors' names and shapes with whole numbers modulo 2^32, as the bits of int32, the type torch has.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from common.update.fixed_point import FixedPoint
from common.update.masks import BLOCK, Mask, add_masks
from common.update.tensors import State

PIECE = 1 << 20
"""Numbers at a time; a multiple of a block."""


def places(model: State) -> dict[str, int]:
    """Where in the streams each tensor begins."""
    begins, place = {}, 0
    for name, tensor in sorted(model.items()):
        begins[name] = place
        place += -(-tensor.numel() // BLOCK) * BLOCK
    return begins


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """The bits of int32 as uint32 [N], in the same memory."""
    return tensor.reshape(-1).numpy().view(np.uint32)


def pieces(model: State) -> Iterator[tuple[str, slice, int]]:
    """Name, part of the tensor as a row, and the part's place in the streams."""
    for name, place in places(model).items():
        size = model[name].numel()
        for begin in range(0, size, PIECE):
            yield name, slice(begin, min(begin + PIECE, size)), place + begin


def masked(update: State, coding: FixedPoint, weight: float, masks: Iterable[Mask]) -> State:
    """What a site sends of its update (float32), int32 in the same shapes.

    Args:
        weight: what the update is multiplied by, at most 1.

    Raises:
        OutOfRange: a value lies beyond the bound of the encoding.
    """
    masks = list(masks)
    sent = {name: torch.empty(tensor.shape, dtype=torch.int32) for name, tensor in update.items()}
    for name, part, place in pieces(update):
        row = coding.encode(update[name].reshape(-1)[part].numpy().astype(np.float64) * weight)
        add_masks(row, masks, place)
        numbers(sent[name])[part] = row
    return sent


def add(total: State, sent: State) -> None:
    """Add what a site sent, in place, modulo 2^32."""
    for name, tensor in total.items():
        row = numbers(tensor)
        np.add(row, numbers(sent[name]), out=row)


def take_away(total: State, rest: Iterable[Mask]) -> None:
    """Add what cancels the masks that are left in a sum (`secagg.leftover`), in place."""
    rest = list(rest)
    for name, part, place in pieces(total):
        add_masks(numbers(total[name])[part], rest, place)


def decoded(total: State, coding: FixedPoint, weights: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The mean of the updates by name, float64, of an opened sum.

    Args:
        weights: sum of the weights of the sites in it.
    """
    for name, tensor in sorted(total.items()):
        yield name, torch.from_numpy(coding.decode(numbers(tensor)) / weights).reshape(tensor.shape)
