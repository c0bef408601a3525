"""What int8 and int4 updates do to a round's mean: its error, as a share of the length of the mean step.

From the last round of a federated run that benchmarks.noniid has kept, every site takes a round's local steps (as in
benchmarks.drift); their updates are sent by the coarse steps, without what error feedback would carry over.

    OMP_NUM_THREADS=1 python -m benchmarks.update_error --folder FOLDER [--seed N]
    OMP_NUM_THREADS=1 python -m benchmarks.update_error --quick
"""

import json

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._fedavg_run import fedavg_run
from benchmarks.drift import flat, updates
from common.federation import StepName, Update
from common.update.chain import chain, decode, encode
from common.update.tensors import State
from server.round_store import RoundStore

COARSE: tuple[StepName, ...] = ("int8", "int4")


def unflat(update: NDArray[np.float64], model: State) -> State:
    """The tensors that `flat` has put in one, float32."""
    sizes = [model[name].numel() for name in sorted(model)]
    parts = torch.from_numpy(update).float().split(sizes)
    return {name: part.reshape(model[name].shape) for name, part in zip(sorted(model), parts, strict=True)}


def error(made: NDArray[np.float64], model: State, coarse: StepName) -> float:
    """Length of what the coarse step changes in the mean update, over the mean update's.

    Args:
        made: `[sites, weights]`.
    """
    steps, start = chain(Update(steps=("difference", coarse))), {n: torch.zeros_like(t) for n, t in model.items()}
    sent = [decode(steps, start, encode(steps, start, unflat(update, model), {})[0], "a site") for update in made]
    coarser = np.mean([flat(update, start) for update in sent], axis=0)
    return float(np.linalg.norm(coarser - made.mean(axis=0)) / np.linalg.norm(made.mean(axis=0)))


def main() -> None:
    with fedavg_run(__doc__) as (folder, seed):
        made = updates(folder, folder.study().with_seed(seed), draws=1)[:, 0]
        store = RoundStore(folder.arm(seed, "federated"))
        model = store.load(store.finished()[-1]).model
    found = {coarse: error(made, model, coarse) for coarse in COARSE}
    print(f"{len(made)} sites: " + ", ".join(f"{coarse} {share:.2%}" for coarse, share in found.items()))
    print(json.dumps({f"{coarse}_error": round(share, 5) for coarse, share in found.items()}))


if __name__ == "__main__":
    main()
