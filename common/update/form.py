"""Whether an update's bytes are those that the chain writes, so that nothing rides along beside the numbers.

A safetensors header has room for other keys, another order and blanks; a zstd stream for a second frame; int4 for bits
that no number uses; a block of zeros for a scale; Golomb-Rice codes for another k. A decoder reads past all of these.
The door of a site (client/egress.py) does not: here one set of numbers has one form.
"""

import json
from pathlib import Path

import numpy as np
import torch

from common.update.blocks import SCALE, Blocks, Int4, in_blocks
from common.update.chain import Step, likes
from common.update.rice import pack_set
from common.update.sparse_bf16 import SparseBf16
from common.update.tensors import BadUpdate, State, to_bytes
from common.update.topk import INDICES, TopK

TYPES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
}
"""safetensors' names, in the order in which it writes tensors: the last ones first, and by name."""


def file_header(state: State) -> bytes:
    """What safetensors writes before the tensors' bytes: the header's length and the header, blanks up to 8 bytes."""
    order, begin = list(TYPES), 0
    header: dict[str, object] = {}
    for name, tensor in sorted(state.items(), key=lambda item: (-order.index(item[1].dtype), item[0])):
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def check_file(path: Path, state: State, source: str) -> None:
    """Refuse a safetensors file that holds more than these tensors, or holds them in another way.

    Raises:
        BadUpdate: names the source.
    """
    expected = file_header(state)
    size = len(expected) + sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with path.open("rb") as file:
        found = file.read(len(expected))
    if found != expected or path.stat().st_size != size:
        raise BadUpdate(source, "the file has more in it than its tensors")


def check_written(steps: list[Step], before: State, sent: State, source: str) -> None:
    """Refuse tensors that decode to a model but are not what the steps would have written for it.

    Args:
        before: the round's model.
        sent: what `chain.decode` takes.

    Raises:
        BadUpdate: names the source and the first such tensor.
    """
    values = sent
    for step, stage in zip(reversed(steps), reversed(likes(steps, before)), strict=True):
        decoded = step.decode(values, stage, source)
        for name in stage:
            if not written(step, name, values, decoded, stage):
                raise BadUpdate(source, f"tensor {name!r} is not as {step.name} writes it")
        values = decoded


def written(step: Step, name: str, values: State, decoded: State, before: State) -> bool:
    """Whether a step writes this tensor's numbers with these bytes. Steps that are not named leave no choice."""
    match step:
        case SparseBf16():
            again = step.encode({name: decoded[name]}, {name: before[name]})[name]
            return torch.equal(again, values[name])
        case TopK():
            row, size = values[f"{name}/{INDICES}"], before[name].numel()
            positions = step.positions(values, name, size, "")
            return pack_set(positions.numpy(), size) == to_bytes(row)
        case Blocks():
            return blocks_written(step, values[name], values[f"{name}/{SCALE}"].numpy(), before[name].numel())
    return True


def blocks_written(step: Blocks, packed: torch.Tensor, scales: np.ndarray, size: int) -> bool:
    whole = step.unpack(packed, size)
    if isinstance(step, Int4) and not torch.equal(step.pack(whole, packed.shape), packed):
        return False  # the half byte after an odd number of values
    # A block's scale makes its largest value the largest number, unless it is so small that it is rounded itself.
    highest = np.abs(in_blocks(whole, step.block).astype(np.int16)).max(axis=1, initial=0)
    tiny = np.finfo(np.float32).tiny
    full = (highest == step.largest) & (scales >= tiny)
    rounded = (highest > 0) & (highest <= step.largest) & (scales > 0) & (scales < tiny)
    nothing = (highest == 0) & (scales == 0) & ~np.signbit(scales)
    return bool((full | rounded | nothing).all()) and bool(np.isfinite(scales).all())
