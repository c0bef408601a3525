"""Outer optimisers: from the sites' folded model to the next global model, tensor by tensor.

All are defined on the pseudo-gradient d = g - mean (g: the round's model), in float64; the result is rounded to the
model's own types. Their state is a flat dict of tensors, so that a checkpoint holds it. Defaults stand in the study's
tables (`common/federation.py`).

Where the model is bfloat16, what rounding leaves is kept with the state and added the next time: sites that each move
a weight by a unit would else move their mean by less than half of one, and the model never.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common import federation
from common.update.tensors import State


class OuterOptimizer(Protocol):
    state: State

    def step(self, name: str, model: Tensor, mean: Tensor) -> Tensor:
        """The next values of a tensor, in float64 like `model` and `mean`."""
        ...


@dataclass
class Sgd:
    """g' = g - lr d. With lr 1 this is FedAvg (McMahan et al. 2017, arXiv 1602.05629): the mean itself.

    At lr 1 the mean is taken as it is, since g - (g - mean) need not be the mean in floating point.
    """

    spec: federation.Sgd
    state: State

    def step(self, name: str, model: Tensor, mean: Tensor) -> Tensor:
        return mean if self.spec.lr == 1.0 else model - self.spec.lr * (model - mean)


@dataclass
class Nesterov:
    """m' = b m + d; g' = g - lr (d + b m'). DiLoCo (Douillard et al. 2023, arXiv 2311.08105): lr 0.7, b 0.9."""

    spec: federation.Nesterov
    state: State

    def step(self, name: str, model: Tensor, mean: Tensor) -> Tensor:
        gradient, momentum = model - mean, self.spec.momentum
        moment = momentum * self.state.get(name, torch.zeros_like(model)) + gradient
        self.state[name] = moment
        return model - self.spec.lr * (gradient + momentum * moment)


@dataclass
class Adam:
    """FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2): no bias correction, tau inside the denominator.

    m' = b1 m + (1 - b1) d; v' = b2 v + (1 - b2) d^2; g' = g - lr m' / (sqrt(v') + tau).
    b1 0.9, b2 0.99, tau 1e-3 as there; v starts at tau^2.
    """

    spec: federation.Adam
    state: State

    def step(self, name: str, model: Tensor, mean: Tensor) -> Tensor:
        gradient, spec = model - mean, self.spec
        m = self.state.get(f"m/{name}", torch.zeros_like(model))
        v = self.state.get(f"v/{name}", torch.full_like(model, spec.tau**2))
        m = spec.momentum * m + (1 - spec.momentum) * gradient
        v = spec.second * v + (1 - spec.second) * gradient**2
        self.state[f"m/{name}"], self.state[f"v/{name}"] = m, v
        return model - spec.lr * m / (v.sqrt() + spec.tau)


def outer_optimizer(spec: federation.Outer, state: State) -> OuterOptimizer:
    """The study's outer optimiser, going on from a checkpoint's state (empty at the start)."""
    match spec:
        case federation.Sgd():
            return Sgd(spec, state)
        case federation.Nesterov():
            return Nesterov(spec, state)
        case federation.Adam():
            return Adam(spec, state)


def next_model(outer: OuterOptimizer, model: State, folded: Iterable[tuple[str, Tensor]]) -> State:
    """The next global model, in the names, shapes and types of `model`."""
    return {
        name: rounded(outer.state, name, outer.step(name, model[name].double(), mean), model[name].dtype)
        for name, mean in folded
    }


def rounded(state: State, name: str, after: Tensor, dtype: torch.dtype) -> Tensor:
    """`after` (float64) in the model's type; `state` keeps what rounding to bfloat16 leaves, and has it from before."""
    if dtype != torch.bfloat16:
        return after.to(dtype)
    residual = f"residual/{name}"
    if residual in state:
        after = after + state[residual]
    nearest = after.to(torch.bfloat16)
    state[residual] = (after - nearest).float()
    return nearest
