"""Share of a simulated round's wall time that is neither generating, learning nor evaluating.

The federated arm of studies/demo.toml in this process, as `wardround simulate` plays it, over a few rounds.
What is left beside the models' own work: messages and the door, the sites' files, folding, checkpoints. The
first round also makes each site's trainer, so it is shown apart.

    python -m benchmarks.round_overhead [--quick]
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from common.model import Builtin
from common.models.builtin import build_builtin
from common.study import Study, parse_study, read_study
from server.frames import registries
from server.run_folder import read_events, write_text
from server.simulation import simulate_federated

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
WORK = ("generating", "learning", "evaluating")
PARTS = (*WORK, "communicating", "folding", "saving")
ROUNDS = 3
WARMUP_STEPS = 100
"""Shorter than the demo's: enough for answers of the usual form and length, which is what takes time."""
QUICK_ROUNDS, QUICK_SITES, QUICK_STEPS = 2, 2, 4
QUICK_MODEL = Builtin(hidden=32, layers=1, warmup_steps=20, warmup_batch=8)


@dataclass(frozen=True)
class Round:
    """Wall seconds of a round, from its start to its checkpoint on the disk, by what they went to."""

    number: int
    wall: float
    parts: dict[str, float]

    @property
    def overhead(self) -> float:
        return self.wall - sum(self.parts[part] for part in WORK)


def chosen_study(quick: bool) -> Study:
    """The demo with a base model that is soon built, or two of its sites with few steps and a smaller model."""
    study = read_study(DEMO)
    values = study.model_dump(mode="json", exclude_none=True)
    values["rounds"]["rounds"] = QUICK_ROUNDS if quick else ROUNDS
    values["model"]["builtin"]["warmup_steps"] = WARMUP_STEPS
    if quick:
        values["sites"] |= {"train": list(study.sites.train[:QUICK_SITES]), "unseen": []}
        values["rounds"]["local_steps"] = QUICK_STEPS
        values["model"]["builtin"] = QUICK_MODEL.model_dump(mode="json")
    return parse_study(values, str(DEMO))


def play(study: Study, folder: Path) -> list[Round]:
    """Build the base model, run the federated arm, all below `folder`, and read its events."""
    model = build_builtin(study, registries(study, study.sites.public)[0], folder / "models")
    write_text(folder / "study.toml", study.to_toml())
    simulate_federated(folder / "study.toml", study, "benchmark", model, folder / "federated", folder / "events.jsonl")
    started, rounds = {}, []
    for event in read_events(folder / "events.jsonl"):
        if event["event"] == "round_started":
            started[event["round"]] = event["time"]
        elif event["event"] == "round_finished":
            wall, seconds = event["time"] - started[event["round"]], event["seconds"]
            parts = {part: seconds[part] for part in (*WORK, "communicating")} | {"folding": seconds["other"]}
            parts["saving"] = wall - sum(parts.values())
            rounds.append(Round(event["round"], wall, parts))
    return rounds


def overhead_share(rounds: Iterable[Round]) -> float:
    rounds = list(rounds)
    return sum(r.overhead for r in rounds) / sum(r.wall for r in rounds)


def table(rounds: list[Round]) -> str:
    """Seconds by round, and the share of each part over all rounds."""
    columns = ("wall", *PARTS, "overhead")
    lines = [f"{'':8}" + "".join(f"{column:>15}" for column in columns)]
    for r in rounds:
        values = [r.wall, *(r.parts[part] for part in PARTS), r.overhead]
        lines.append(f"round {r.number:<2}" + "".join(f"{value:>13.3f} s" for value in values))
    wall = sum(r.wall for r in rounds)
    totals = [wall, *(sum(r.parts[part] for r in rounds) for part in PARTS), sum(r.overhead for r in rounds)]
    lines.append(f"{'share':8}" + "".join(f"{value / wall:>13.1%}  " for value in totals))
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two sites, few steps, a small model: seconds instead of a minute"
    )
    given = parser.parse_args()
    study = chosen_study(given.quick)
    # One thread, as a worker of `wardround simulate` has.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rounds = play(study, Path(temporary))
    print(
        f"{len(study.sites.train)} sites, {study.rounds.rounds} rounds of {study.rounds.local_steps} steps, "
        f"1 thread; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(table(rounds))
    ratios = {
        "overhead_share": overhead_share(rounds),
        "overhead_share_first_round": overhead_share(rounds[:1]),
        "overhead_share_later_rounds": overhead_share(rounds[1:]),
    }
    wall = sum(r.wall for r in rounds)
    ratios |= {f"{part}_share": sum(r.parts[part] for r in rounds) / wall for part in PARTS}
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
