"""Outer optimisers: from the sites' mean to the next global model.

All are defined on the pseudo-gradient d = g - mean (g: the round's model), in float64; the result is cast
to the model's own types. Their state is a flat dict of float64 tensors, so that a checkpoint holds it.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from common.study import Outer
from common.update.tensors import State


class OuterOptimizer(Protocol):
    state: State

    def step(self, model: State, mean: State) -> State:
        """The next model, in the names, shapes and types of `model`; `mean` is float64."""
        ...


def as_model(values: State, model: State) -> State:
    return {name: values[name].to(tensor.dtype) for name, tensor in model.items()}


@dataclass
class Sgd:
    """g' = g - lr d. With lr 1 this is FedAvg (McMahan et al. 2017, arXiv 1602.05629): the mean itself.

    At lr 1 the mean is taken as it is, since g - (g - mean) need not be the mean in floating point.
    """

    lr: float = 1.0
    state: State = field(default_factory=dict)

    def step(self, model: State, mean: State) -> State:
        if self.lr == 1.0:
            return as_model(mean, model)
        return as_model({n: g.double() - self.lr * (g.double() - mean[n]) for n, g in model.items()}, model)


@dataclass
class Nesterov:
    """m' = b m + d; g' = g - lr (d + b m'). DiLoCo (Douillard et al. 2023, arXiv 2311.08105): lr 0.7, b 0.9."""

    lr: float = 0.7
    momentum: float = 0.9
    state: State = field(default_factory=dict)

    def step(self, model: State, mean: State) -> State:
        after: State = {}
        for name, tensor in model.items():
            now = tensor.double()
            gradient = now - mean[name]
            moment = self.momentum * self.state.get(name, torch.zeros_like(now)) + gradient
            self.state[name] = moment
            after[name] = now - self.lr * (gradient + self.momentum * moment)
        return as_model(after, model)


@dataclass
class Adam:
    """FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2): no bias correction, tau inside the denominator.

    m' = b1 m + (1 - b1) d; v' = b2 v + (1 - b2) d^2; g' = g - lr m' / (sqrt(v') + tau).
    b1 0.9, b2 0.99, tau 1e-3 as there; v starts at tau^2.
    """

    lr: float = 0.01
    momentum: float = 0.9
    second: float = 0.99
    tau: float = 1e-3
    state: State = field(default_factory=dict)

    def step(self, model: State, mean: State) -> State:
        after: State = {}
        for name, tensor in model.items():
            now = tensor.double()
            gradient = now - mean[name]
            m = self.state.get(f"m/{name}", torch.zeros_like(now))
            v = self.state.get(f"v/{name}", torch.full_like(now, self.tau**2))
            m = self.momentum * m + (1 - self.momentum) * gradient
            v = self.second * v + (1 - self.second) * gradient**2
            self.state[f"m/{name}"], self.state[f"v/{name}"] = m, v
            after[name] = now - self.lr * m / (v.sqrt() + self.tau)
        return as_model(after, model)


def outer_optimizer(spec: Outer, state: State) -> OuterOptimizer:
    """The study's outer optimiser, going on from a checkpoint's state (empty at the start)."""
    if spec.name == "sgd":
        return Sgd(lr=spec.lr, state=state)
    if spec.name == "nesterov":
        return Nesterov(lr=spec.lr, momentum=spec.momentum, state=state)
    return Adam(lr=spec.lr, momentum=spec.momentum, state=state)
