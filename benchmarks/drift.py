"""What sites' updates have in common, what is each site's own, and what is chance.

From the last round of a federated run that benchmarks.noniid has kept, every site takes a round's local steps twice,
other questions and completions drawn the second time. Scalar products then split the mean squared length of an update:
of two sites' updates, what all share; of one site's two, the site's own part in addition; the rest is chance. Only the
site's own part is client drift, which FedProx and SCAFFOLD are there to hold. All start from the mean of the sites'
optimiser states, so that nothing but its data is a site's own; what that mean carries on counts as shared.

    OMP_NUM_THREADS=1 python -m benchmarks.drift --folder FOLDER [--seed N]
    OMP_NUM_THREADS=1 python -m benchmarks.drift --quick
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks._fedavg_run import fedavg_run
from common.errors import UserError
from common.grpo.local import LocalTrainer
from common.models.policy import load_policy, load_trainable, trainable_state
from common.study import Study
from common.update.tensors import State
from server.arm_jobs import base_model
from server.frames import Frames
from server.round_store import RoundStore
from server.run_folder import RunFolder

DRAWS = 2


@dataclass(frozen=True)
class Parts:
    """Shares of an update's mean squared length."""

    shared: float
    own: float
    chance: float


def flat(after: State, before: State) -> NDArray[np.float64]:
    return np.concatenate([(after[n].double() - before[n].double()).flatten().numpy() for n in sorted(before)])


def mean_state(files: Sequence[Path]) -> State:
    """Of the optimiser states in these files, tensor by tensor."""
    states = [load_file(file) for file in files]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def updates(folder: RunFolder, study: Study, draws: int = DRAWS) -> NDArray[np.float64]:
    """A round's local steps of every site from the run's last model: `[sites, draws, weights]`."""
    arm, frames = folder.arm(study.seed, "federated"), Frames(folder.seed(study.seed) / "questions")
    last = RoundStore(arm).latest()
    if last is None or last.round == 0:
        raise UserError(f"{arm}: no finished round.", "Run benchmarks.noniid with this folder first.")
    policy = load_policy(study, base_model(folder, study.seed))
    name = f"optimizer-{last.step}.safetensors"
    state = mean_state(sorted((arm / "sites").rglob(name)))
    found = []
    for site in study.sites.train:
        questions = frames.train(site)
        for number in range(draws):
            # All that a trainer draws derives from its stream's name.
            trainer = LocalTrainer(policy, study, questions, f"{site}/{number}", last.step + study.rounds.local_steps)
            load_trainable(policy, last.model)
            with tempfile.TemporaryDirectory() as temporary:
                save_file(state, Path(temporary) / name)
                trainer.run(last.step, study.rounds.local_steps, Path(temporary))
            found.append(flat(trainable_state(policy), last.model))
    return np.stack(found).reshape(len(study.sites.train), draws, -1)


def parts_of(updates: NDArray[np.float64]) -> Parts:
    """Args: `updates`: `[sites, 2, weights]`, the two draws of a site independent but for its data."""
    first, second = updates[:, 0], updates[:, 1]
    products = first @ second.T
    sites = len(products)
    same = float(np.trace(products)) / sites
    other = float(products.sum() - np.trace(products)) / (sites * (sites - 1))
    length = float((updates**2).sum()) / (sites * DRAWS)
    return Parts(other / length, (same - other) / length, (length - same) / length)


def main() -> None:
    with fedavg_run(__doc__) as (folder, seed):
        found = parts_of(updates(folder, folder.study().with_seed(seed)))
    print(f"mean squared length of an update: shared by the sites {found.shared:.1%}, a site's own {found.own:.1%}, "
          f"chance {found.chance:.1%}")  # fmt: skip
    print(json.dumps({name: round(value, 4) for name, value in vars(found).items()}))


if __name__ == "__main__":
    main()
