"""What int8 and int4 updates do to a round's mean: its error, as a share of the length of the mean step.

The sites' updates are those of the last round of a FedAvg run that benchmarks.noniid has kept; they are sent again by
the coarser steps, without what error feedback would carry over from the round before.

    OMP_NUM_THREADS=1 python -m benchmarks.update_error --folder FOLDER [--seed N]
    OMP_NUM_THREADS=1 python -m benchmarks.update_error --quick
"""

import json
from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks._fedavg_run import fedavg_run
from common.federation import StepName, Update
from common.update.chain import chain, decode, encode
from common.update.tensors import State
from server.round_store import RoundStore
from server.run_folder import RunFolder

COARSE: tuple[StepName, ...] = ("int8", "int4")


def last_round(folder: RunFolder, seed: int) -> tuple[State, list[State]]:
    """The last round's model and what the sites made of it."""
    arm, spec = folder.arm(seed, "federated"), folder.study().update
    store = RoundStore(arm)
    number = store.finished()[-1]
    before = store.load(number - 1).model
    files = sorted(arm.glob(f"sites/*/studies/*/runs/*/update-{number}-*.safetensors"))
    return before, [decode(chain(spec), before, load_file(file), file.parts[-6]) for file in files]


def mean_step(before: State, models: Sequence[State]) -> Tensor:
    """The mean of the models less the one before, all tensors in one, float64."""
    return torch.cat(
        [(torch.stack([m[n].double() for m in models]).mean(0) - before[n].double()).flatten() for n in before]
    )


def error(before: State, models: Sequence[State], coarse: StepName) -> float:
    """Length of what the coarse step changes in the mean step, over the mean step's."""
    steps = chain(Update(steps=("difference", coarse)))
    sent = [decode(steps, before, encode(steps, before, model, {})[0], "a site") for model in models]
    exact = mean_step(before, models)
    return float((mean_step(before, sent) - exact).norm() / exact.norm())


def main() -> None:
    with fedavg_run(__doc__) as (folder, seed):
        before, models = last_round(folder, seed)
    found = {coarse: error(before, models, coarse) for coarse in COARSE}
    print(f"{len(models)} sites: " + ", ".join(f"{coarse} {share:.2%}" for coarse, share in found.items()))
    print(json.dumps({f"{coarse}_error": round(share, 5) for coarse, share in found.items()}))


if __name__ == "__main__":
    main()
