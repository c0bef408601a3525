"""How far each outer optimiser, with its defaults, would move the model: multiples of FedAvg's own step.

The pseudo-gradients are those of a FedAvg run that benchmarks.noniid has kept, fed to each optimiser in turn. The sites
do not answer to its steps, so this says what size a default has, not what accuracy it brings.

    OMP_NUM_THREADS=1 python -m benchmarks.outer_steps --folder FOLDER [--seed N]
    OMP_NUM_THREADS=1 python -m benchmarks.outer_steps --quick
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks._fedavg_run import fedavg_run
from common.federation import Adam, Nesterov, Outer
from common.update.tensors import State
from server.outer import outer_optimizer
from server.round_store import RoundStore

OUTERS: tuple[Outer, ...] = (Nesterov(name="nesterov"), Adam(name="adam"))


def length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([(tensor**2).sum() for tensor in tensors]).sum().sqrt())


def step_ratios(spec: Outer, models: Sequence[State]) -> list[float]:
    """Length of the optimiser's step by FedAvg's, round by round.

    Args:
        models: FedAvg's, one a round from the base model on: each is the sites' mean that followed the one before.
    """
    outer, found = outer_optimizer(spec, {}), []
    for before, mean in zip(models, models[1:], strict=False):
        wide = {name: (before[name].double(), mean[name].double()) for name in before}
        steps = [outer.step(name, old, new) - old for name, (old, new) in wide.items()]
        found.append(length(steps) / length([new - old for old, new in wide.values()]))
    return found


def main() -> None:
    with fedavg_run(__doc__) as (folder, seed):
        store = RoundStore(folder.arm(seed, "federated"))
        models = [store.load(number).model for number in store.finished()]
    found = {spec.name: step_ratios(spec, models) for spec in OUTERS}
    for name, ratios in found.items():
        print(f"{name:10}" + "".join(f"{ratio:8.2f}" for ratio in ratios))
    print(json.dumps({f"{name}_last": round(ratios[-1], 4) for name, ratios in found.items()}))


if __name__ == "__main__":
    main()
