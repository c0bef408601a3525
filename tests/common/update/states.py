"""States to encode, for hypothesis: names, shapes and types of models, adapters and odd tensors."""

import numpy as np
import torch
from hypothesis import strategies as st

from common.update.tensors import State

SHAPES = [(), (0,), (0, 3), (1,), (7,), (64,), (257,), (16, 8), (3, 5, 7)]
"""Scalars, empty ones, odd ones; [out, rank] of an adapter among them."""


@st.composite
def pairs(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], patterns: bool = False) -> tuple[State, State]:
    """Two states of the same names, shapes and types: a model, and what a few steps made of it.

    Args:
        patterns: any bit pattern, NaN and infinity excepted, in place of ordinary weights.
    """
    before, after = {}, {}
    for name in draw(st.lists(st.sampled_from(["a.weight", "b.lora_B.default.weight", "c"]), min_size=1, unique=True)):
        shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(dtypes))
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        size = int(np.prod(shape))
        if patterns:
            old, new = (torch.from_numpy(random.integers(-(2**31), 2**31, size).astype(np.int32)) for _ in range(2))
            old, new = old.view(torch.float32), new.view(torch.float32)
        else:
            old = torch.from_numpy(random.normal(0, 0.02, size).astype(np.float32))
            moved = random.random(size) < draw(st.sampled_from([0.0, 0.05, 0.9, 1.0]))
            step = random.normal(0, draw(st.sampled_from([1e-6, 1e-3, 10.0])), size)
            new = old + torch.from_numpy((moved * step).astype(np.float32))
        for state, values in ((before, old), (after, new)):
            tensor = values.to(dtype)
            state[name] = torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor)).reshape(shape)
    return before, after


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view({4: torch.int32, 2: torch.int16}[tensor.element_size()])


def same(first: State, second: State) -> bool:
    """Bit for bit, shapes and types too."""
    return first.keys() == second.keys() and all(
        first[n].dtype == t.dtype and first[n].shape == t.shape and torch.equal(bits(first[n]), bits(t))
        for n, t in second.items()
    )
