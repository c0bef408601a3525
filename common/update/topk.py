"""The largest differences of each tensor and where they stand: a declared share of them, the rest is fed back.

(Stich et al. 2018, arXiv 1809.07599, top-k with memory.) Costs 4 bytes and about log2(1 / share) + 2 bits a difference
that is sent. Not exact: what is not sent is added to the next round's difference. Not linear: each site sends others.
"""

import math

import numpy as np
import torch

from common.update.rice import Malformed, Reader, pack_set, unpack_set
from common.update.tensors import BadUpdate, State, byte_row, check_like

INDICES = "indices"


class TopK:
    name = "topk"
    exact = False
    linear = False
    side = INDICES
    feeds_back = True

    def __init__(self, share: float) -> None:
        self.share = share

    def count(self, size: int) -> int:
        return math.ceil(self.share * size)

    def encode(self, values: State, before: State) -> State:
        sent = {}
        for name, value in values.items():
            flat = value.reshape(-1).numpy()
            left_out = flat.size - self.count(flat.size)
            order = np.argpartition(np.abs(flat), left_out) if left_out else np.arange(flat.size)
            positions = np.sort(order[left_out:])
            sent[name] = torch.from_numpy(flat[positions])
            sent[f"{name}/{INDICES}"] = byte_row(pack_set(positions, flat.size))
        return sent

    def like(self, before: State) -> State:
        return {name: torch.empty(self.count(model.numel()), device="meta") for name, model in before.items()}

    def decode(self, values: State, before: State, source: str) -> State:
        """Differences in float32, zero where none was sent.

        Raises:
            BadUpdate: not the declared number of differences, or positions that cannot be decoded.
        """
        check_like({name: values[name] for name in before}, self.like(before), source)
        decoded = {}
        for name, model in before.items():
            flat = torch.zeros(model.numel())
            flat[self.positions(values, name, model.numel(), source)] = values[name]
            decoded[name] = flat.reshape(model.shape)
        return decoded

    def positions(self, values: State, name: str, size: int, source: str) -> torch.Tensor:
        row = values[f"{name}/{INDICES}"]
        if row.dtype != torch.uint8 or row.dim() != 1:
            raise BadUpdate(source, f"the positions of tensor {name!r} are no row of bytes")
        reader = Reader(row.numpy().tobytes())
        try:
            positions = unpack_set(reader, size)
            reader.ended()
        except Malformed as fault:
            raise BadUpdate(source, f"the positions of tensor {name!r} cannot be decoded: {fault}") from None
        if positions.size != self.count(size):
            raise BadUpdate(source, f"tensor {name!r} has {positions.size} positions, expected {self.count(size)}")
        return torch.from_numpy(positions)
