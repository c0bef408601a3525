"""The exact difference to the round's model: bit patterns subtracted as integers, modulo 2^32 (or 2^16).

In float32 a + (b - a) is not always b, so the difference is taken between the bit patterns:

    sent = bits(after) - bits(before)   (mod 2^32 for float32, 2^16 for bfloat16)
    bits(after) = bits(before) + sent

It costs 4 (or 2) bytes a parameter, is exact for every value, and is not linear in the weights: a sum of
such differences means nothing, so it cannot stand under a secure sum.
"""

import torch

from common.update.tensors import State, check_like

PATTERN = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


class Delta:
    name = "delta"
    exact = True
    linear = False
    side = ""
    feeds_back = False

    def like(self, before: State) -> State:
        return before

    def encode(self, values: State, before: State) -> State:
        """The integer differences, int32 for float32 and int16 for bfloat16, in the shapes of `before`."""
        return {
            name: values[name].view(PATTERN[model.dtype]) - model.view(PATTERN[model.dtype])
            for name, model in before.items()
        }

    def decode(self, values: State, before: State, source: str) -> State:
        """The site's model, bit for bit.

        Raises:
            BadUpdate: a tensor is missing, extra, of another shape or of another type.
        """
        check_like(values, before, source, {name: PATTERN[model.dtype] for name, model in before.items()})
        return {
            name: (model.view(PATTERN[model.dtype]) + values[name]).view(model.dtype) for name, model in before.items()
        }
