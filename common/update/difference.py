"""The difference of values to the round's model, in float32: what clipping, sparsifying and quantising work on.

    sent = after - before,  decoded = before + sent     (each rounded once, to float32)

It costs 4 bytes a parameter and is linear: a sum of differences is the difference of the sum, so that it can stand
under a secure sum. It is not exact: before + (after - before) may miss `after` by a rounding (`delta` does not).
"""

import torch

from common.update.tensors import State, check_like


class Difference:
    name = "difference"
    exact = False
    linear = True
    side = ""
    feeds_back = False

    def encode(self, values: State, before: State) -> State:
        return {name: values[name].float() - model.float() for name, model in before.items()}

    def like(self, before: State) -> State:
        return {name: torch.empty(model.shape, device="meta") for name, model in before.items()}

    def decode(self, values: State, before: State, source: str) -> State:
        """The site's model in float32, whatever the model's own type: to round it to bfloat16 would lose what the
        difference says.

        Raises:
            BadUpdate: a tensor is missing, extra, of another shape or not float32.
        """
        check_like(values, before, source, dict.fromkeys(before, torch.float32))
        return {name: model.float() + values[name] for name, model in before.items()}
