"""The federated arm once for each of several studies and seeds, everything else equal, beside the first of them.

Differences are paired over the same patients and questions. What is finished is not run again, and a run that was
killed goes on from its last round.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from scipy import stats

from common.errors import UserError
from common.evaluation.scoring import per_question
from common.study import Study
from server.arm_jobs import do_job
from server.arms import prepare
from server.jobs import SPLITS, answered_path
from server.report.result import Runs, comparison, drawn, with_intervals
from server.round_store import RoundStore
from server.run_folder import RunFolder, create_run, open_run
from server.workers import Job

Found = dict[str, dict[str, dict[str, Any]]]
"""Name, or `base` -> split -> accuracy with its interval and, as `paired`, `comparison` with the first variant."""


@dataclass(frozen=True)
class Variants:
    """Studies that ask the same questions of the same base model, by name, and where their runs are kept."""

    studies: Mapping[str, Study]
    """The first is the plain one, with which the others are compared."""
    folder: Path
    cache: Path
    """Where the built-in model lies, or is put once built."""
    seeds: Sequence[int]

    @property
    def plain(self) -> str:
        return next(iter(self.studies))

    def run(self, name: str) -> RunFolder:
        """The variant's run folder, made at the first call.

        Raises:
            UserError: the one that is there is of another study.
        """
        study, place = self.studies[name], self.folder / name
        found = sorted(place.glob("*/run.json"))
        if not found:
            return create_run(place, study, list(self.seeds), ["base", "federated"], time.time())
        folder = open_run(found[0].parent)
        if folder.study().hash != study.hash:
            raise UserError(f"{folder.path} is a run of another study.", "Give --folder another folder.")
        return folder

    def play(self, name: str, seed: int) -> None:
        """Train and examine; what is finished is kept as it is. The plain one also has the base model's own answers."""
        folder = self.run(name)
        prepare(folder, [seed])
        for arm in ("questions", "model", "federated", *(["base"] if name == self.plain else [])):
            do_job(folder.path, Job(seed, arm), self.cache)

    def play_all(self) -> None:
        """Run every variant, seed by seed, so that what is finished early can be compared."""
        for seed in self.seeds:
            for name in self.studies:
                start = time.monotonic()
                self.play(name, seed)
                print(f"{name}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)

    def validation(self, name: str, seed: int) -> list[float]:
        """The sites' pooled accuracy on their own validation patients, from the base model to the last round."""
        store = RoundStore(self.run(name).arm(seed, "federated"))
        return [store.load(number).notes["accuracy"] for number in store.finished()]

    def answers(self, name: str, split: str, arm: str = "federated") -> Runs:
        folder = self.run(name)
        paths = {seed: answered_path(folder, Job(seed, arm), split) for seed in self.seeds}
        return {seed: per_question(pl.read_parquet(path)) for seed, path in paths.items()}

    def compared(self) -> Found:
        """Over all seeds."""
        study = self.studies[self.plain]
        answers = {("base", split): self.answers(self.plain, split, "base") for split in SPLITS}
        answers |= {(name, split): self.answers(name, split) for name in self.studies for split in SPLITS}
        found: Found = {}
        for (name, split), runs in answers.items():
            figures = with_intervals(drawn(list(runs.values()), study))
            if name != self.plain:
                figures["paired"] = comparison(runs, answers[self.plain, split], study)
            found.setdefault(name, {})[split] = figures
        return found


def signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def over_seeds(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t: what other seeds would do, where each seed counts as one draw."""
    error = stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=sum(differences) / len(differences), scale=error)
    return float(low), float(high)


def table(found: Found, plain: str) -> str:
    """Markdown rows: accuracy, and difference to the plain variant in points: with what other patients would do to it,
    by seed, and with what other seeds would do to it.

    Args:
        plain: what the plain variant is called in the head.
    """
    lines = [
        f"| variant | split | accuracy | less {plain} | by seed | over seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, splits in found.items():
        for split, figures in splits.items():
            low, high = figures["ci95"]
            accuracy = f"{100 * figures['accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            cells = [name, split.replace("_", " "), accuracy]
            if "paired" in figures:
                paired = figures["paired"]
                low, high = paired["ci95"]
                cells.append(f"{signed(paired['difference'])} [{signed(low)}, {signed(high)}]")
                seeds = [run["difference"] for run in paired["per_seed"]]
                cells.append(", ".join(signed(difference) for difference in seeds))
                cells.append("[{}, {}]".format(*map(signed, over_seeds(seeds))) if len(seeds) > 1 else "")
            else:
                cells += ["", "", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(found: Found) -> dict[str, float]:
    """All accuracies, and every variant's difference to the plain one with its 95 % interval."""
    values = {}
    for name, splits in found.items():
        for split, figures in splits.items():
            values[f"{name}_{split}"] = figures["accuracy"]
            if "paired" in figures:
                low, high = figures["paired"]["ci95"]
                values[f"{name}_{split}_difference"] = figures["paired"]["difference"]
                values |= {f"{name}_{split}_low": low, f"{name}_{split}_high": high}
    return values
