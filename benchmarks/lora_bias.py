"""What averaging LoRA's factors apart loses, beside three exact ways, on the demo's four sites.

For each way of `model.lora.average` the federated arm of studies/demo.toml runs with LoRA from the same base model. The
sites' models of each round are kept, and the distance of the next model's layers W + s B A to their mean is computed
from them in float64, over the norm of the mean of s B A (docs/updates.md).

    python -m benchmarks.lora_bias [--rounds 4] [--steps 10] [--seed 1] [--out FOLDER]

With --out an interrupted run goes on from its last finished round.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from common.evaluation.answering import answer
from common.evaluation.intervals import Draws, draw, interval, paired, tally
from common.evaluation.scoring import per_question
from common.model import Average
from common.models.adapters import FACTOR_A, FACTOR_B, FROZEN
from common.models.builtin import build_builtin
from common.models.policy import Policy, load_policy, load_trainable
from common.study import Study, parse_study, read_study
from server.adapters import layers
from server.frames import build_frames, registries
from server.jobs import SPLITS
from server.round_store import RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog
from server.simulation import InProcessGrid, load_client_app, site_contexts

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
AVERAGES: tuple[Average, ...] = get_args(Average)
RESAMPLES = 2000
LEARNING_RATE = 5e-3


class KeepingStore(RoundStore):
    """The coordinator's store, with the sites' models of every round."""

    def drop_received(self, number: int) -> None:
        pass


@dataclass(frozen=True)
class Outcome:
    """What one way of averaging came to."""

    distances: list[float]
    """Of each round."""
    draws: dict[str, Draws]
    """Accuracy by split."""
    bytes_up: int
    """Sent by one site over all rounds."""
    bytes_model: int
    """Of the model that goes to each site in a round."""


def chosen_study(average: Average, rounds: int, steps: int, seed: int) -> Study:
    """The demo with LoRA, fewer rounds and fewer test questions."""
    values = read_study(DEMO).model_dump(mode="json", exclude_none=True)
    values["seed"] = seed
    values["model"] |= {"trainable": "lora", "lora": {"average": average}}
    values["grpo"]["learning_rate"] = LEARNING_RATE
    values["rounds"] |= {"rounds": rounds, "local_steps": steps, "validation_patients": 0}
    values["evaluation"]["questions_per_patient"] = 5
    return parse_study(values, str(DEMO))


def layer_values(tensors: Mapping[str, Tensor], study: Study) -> dict[str, tuple[Tensor, Tensor]]:
    """W + s B A and s B A of each adapted layer, float64."""
    scale, out = study.model.lora.alpha / study.model.lora.rank, {}
    for layer in layers(dict(tensors)):
        added = scale * tensors[layer + FACTOR_B].double() @ tensors[layer + FACTOR_A].double()
        out[layer] = (tensors[layer + FROZEN].double() + added, added)
    return out


def distance(study: Study, base: Mapping[str, Tensor], store: RoundStore, number: int) -> float:
    """Of a round's next model to the mean of its sites' models; every site weighs alike."""
    start, sites = store.load(number - 1).model, study.sites.train
    theirs = [layer_values({**base, **start, **load_file(store.received(number, s))}, study) for s in sites]
    after = layer_values({**base, **store.load(number).model}, study)
    apart = whole = 0.0
    for layer, (value, _) in after.items():
        mean, added = (sum(site[layer][part] for site in theirs) / len(sites) for part in (0, 1))
        apart += float(torch.as_tensor(value - mean).square().sum())
        whole += float(torch.as_tensor(added).square().sum())
    return float((apart / whole) ** 0.5)


def examine(policy: Policy, study: Study, questions: Mapping[str, pl.DataFrame]) -> dict[str, Draws]:
    return {
        split: draw(tally([per_question(answer(policy, frame, study.evaluation))]), RESAMPLES, seed=study.seed)
        for split, frame in questions.items()
    }


def federate(study: Study, model: Path, folder: Path, questions: Mapping[str, pl.DataFrame]) -> Outcome:
    store = KeepingStore(folder / "federated")
    grid = InProcessGrid(load_client_app(), site_contexts(study, folder / "sites"))
    log = EventLog(folder / "events.jsonl", arm="federated", seed=study.seed)
    last = run_rounds(grid, study, "lora-bias", model, store, log)
    policy = load_policy(study, model)
    base = {name: p.detach() for name, p in policy.model.named_parameters()}
    rounds = range(1, study.rounds.rounds + 1)
    distances = [distance(study, base, store, number) for number in rounds]
    load_trainable(policy, last.model)
    sent = sum(store.load(number).notes["bytes"][study.sites.train[0]] for number in rounds)
    size = sum(tensor.nbytes for tensor in last.model.values())
    return Outcome(distances, examine(policy, study, questions), sent, size)


def cell(draws: Draws) -> str:
    found = interval(draws.micro, draws.micro_draws)
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def gain(outcome: Draws, base: Draws) -> str:
    found = paired(outcome, base).estimate
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def show(console: Console, base: Mapping[str, Draws], outcomes: Mapping[Average, Outcome]) -> None:
    rounds = len(next(iter(outcomes.values())).distances)
    far = Table("average", *(f"round {number}" for number in range(1, rounds + 1)), title="Distance to the mean")
    for average, outcome in outcomes.items():
        far.add_row(average, *(f"{value:.1e}" for value in outcome.distances))
    console.print(far)
    good = Table("average", *SPLITS, "held out, less separate", "kB up in all", "kB of the model",
                 title="Accuracy, % with 95 % intervals")  # fmt: skip
    good.add_row("(base model)", *(cell(base[split]) for split in SPLITS), "", "", "")
    separate = outcomes["separate"].draws[SPLITS[0]]
    for average, outcome in outcomes.items():
        less = "" if average == "separate" else gain(outcome.draws[SPLITS[0]], separate)
        sizes = (f"{size / 1e3:.0f}" for size in (outcome.bytes_up, outcome.bytes_model))
        good.add_row(average, *(cell(outcome.draws[split]) for split in SPLITS), less, *sizes)
    console.print(good)


def as_json(outcome: Outcome) -> dict[str, object]:
    accuracy = {s: asdict(interval(d.micro, d.micro_draws)) for s, d in outcome.draws.items()}
    return {"distances": outcome.distances, "accuracy": accuracy,
            "bytes_up": outcome.bytes_up, "bytes_model": outcome.bytes_model}  # fmt: skip


def measure(folder: Path, rounds: int, steps: int, seed: int) -> None:
    studies = {average: chosen_study(average, rounds, steps, seed) for average in AVERAGES}
    study = studies["frozen-a"]
    public = registries(study, study.sites.public)[0]
    model = build_builtin(study, public, folder / "models", None)
    frames = build_frames(study, folder / "questions")
    questions = {split: frames.test(split) for split in SPLITS}
    base = examine(load_policy(study, model), study, questions)
    outcomes = {average: federate(one, model, folder / average, questions) for average, one in studies.items()}
    show(Console(width=140), base, outcomes)
    print(json.dumps({average: as_json(outcome) for average, outcome in outcomes.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one unless given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        measure(given.out or Path(temporary), given.rounds, given.steps, given.seed)


if __name__ == "__main__":
    main()
