"""Federated training over unlike sites: weightings, outer step, proximal pull and coarser updates beside plain FedAvg.

The federated arm of studies/ist.toml (eight countries as hospitals) once for each variant and seed, everything else
equal: base model, questions, sampling. Differences to FedAvg are paired over the same patients and questions. What is
finished under --folder is not run again, and a run that was killed goes on from its last round.

    OMP_NUM_THREADS=1 python -m benchmarks.noniid --folder FOLDER [--only NAME,NAME] [--seeds N] [--plot FILE]
        [--rounds N] [--test-questions N]
    OMP_NUM_THREADS=1 python -m benchmarks.noniid --quick
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from platformdirs import user_cache_path

from common.errors import UserError
from common.evaluation.scoring import per_question
from common.model import Builtin
from common.study import Study, parse_study, read_study
from server.arm_jobs import do_job
from server.arms import prepare
from server.jobs import SPLITS, answered_path
from server.report.result import Runs, comparison, drawn, with_intervals
from server.round_store import RoundStore
from server.run_folder import RunFolder, create_run, open_run
from server.workers import Job

STUDIES = Path(__file__).parent.parent / "studies"
PLAIN = "fedavg"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "patients": {"rounds": {"weights": "patients"}},
    "nesterov": {"rounds": {"outer": {"name": "nesterov"}}},
    "fedprox-0.01": {"rounds": {"proximal": 0.01}},
    "fedprox-0.1": {"rounds": {"proximal": 0.1}},
    "int8": {"update": {"steps": ["difference", "int8"]}},
    "int4": {"update": {"steps": ["difference", "int4"]}},
    "informative": {"rounds": {"weights": "informative"}},
}
"""Name -> what it sets in the study's tables. Weights by questions are left out: every patient of IST has ten."""
SEEDS = 3
QUICK_VARIANTS, QUICK_SITES, QUICK_ROUNDS, QUICK_STEPS = (PLAIN, "nesterov", "fedprox-0.1", "int8"), 2, 2, 2
QUICK_MODEL = Builtin(hidden=32, layers=1, warmup_steps=150, warmup_batch=8)
"""Warmed up just long enough that some answers are right and GRPO has something to learn from."""


@dataclass(frozen=True)
class Plan:
    """What is compared: the study without changes, and where everything is kept."""

    study: Study
    folder: Path
    cache: Path
    seeds: list[int]

    def with_changes(self, variant: str) -> Study:
        values = self.study.model_dump(mode="json", exclude_none=True)
        for table, settings in VARIANTS[variant].items():
            values[table] |= settings
        return parse_study(values, variant)

    def run(self, variant: str) -> RunFolder:
        """The variant's run folder, made at the first call.

        Raises:
            UserError: the one that is there is of another study.
        """
        study, place = self.with_changes(variant), self.folder / variant
        found = sorted(place.glob("*/run.json"))
        if not found:
            return create_run(place, study, self.seeds, ["base", "federated"], time.time())
        folder = open_run(found[0].parent)
        if folder.study().hash != study.hash:
            raise UserError(f"{folder.path} is a run of another study.", "Give --folder another folder.")
        return folder

    def play(self, variant: str, seed: int) -> None:
        """Train and examine; what is finished is kept as it is. The base model's own answers come with FedAvg's."""
        folder = self.run(variant)
        prepare(folder, [seed])
        for arm in ("questions", "model", "federated", *(["base"] if variant == PLAIN else [])):
            do_job(folder.path, Job(seed, arm), self.cache)

    def validation(self, variant: str, seed: int) -> list[float]:
        """The sites' pooled accuracy on their own validation patients, from the base model to the last round."""
        store = RoundStore(self.run(variant).arm(seed, "federated"))
        return [store.load(number).notes["accuracy"] for number in store.finished()]

    def answers(self, variant: str, split: str, arm: str = "federated") -> Runs:
        folder = self.run(variant)
        paths = {seed: answered_path(folder, Job(seed, arm), split) for seed in self.seeds}
        return {seed: per_question(pl.read_parquet(path)) for seed, path in paths.items()}


def chosen_study(quick: bool, rounds: int | None, test_questions: int | None) -> Study:
    """IST by country, with its own rounds and test questions unless given; or, quick, two synthetic sites."""
    file = STUDIES / ("demo.toml" if quick else "ist.toml")
    study = read_study(file)
    values = study.model_dump(mode="json", exclude_none=True)
    values["rounds"]["rounds"] = rounds or (QUICK_ROUNDS if quick else study.rounds.rounds)
    if test_questions is not None:
        values["evaluation"]["questions_per_patient"] = test_questions
    if quick:
        values["sites"]["train"] = list(study.sites.train[:QUICK_SITES])
        values["rounds"]["local_steps"] = QUICK_STEPS
        values["model"]["builtin"] = QUICK_MODEL.model_dump(mode="json")
        values["evaluation"]["patients_per_site"] = 5
    return parse_study(values, str(file))


def play_all(plan: Plan, variants: Sequence[str]) -> None:
    """Run every variant, seed by seed, so that what is finished early can be compared."""
    for seed in plan.seeds:
        for variant in variants:
            start = time.monotonic()
            plan.play(variant, seed)
            print(f"{variant}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)


def compared(plan: Plan, variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> split -> accuracy with its interval and, beside FedAvg's, the paired difference by `comparison`."""
    answers = {("base", split): plan.answers(PLAIN, split, "base") for split in SPLITS}
    answers |= {(variant, split): plan.answers(variant, split) for variant in variants for split in SPLITS}
    found: dict[str, dict[str, Any]] = {}
    for (name, split), runs in answers.items():
        figures = with_intervals(drawn(list(runs.values()), plan.study))
        if name != PLAIN:
            figures["to_fedavg"] = comparison(runs, answers[PLAIN, split], plan.study)
        found.setdefault(name, {})[split] = figures
    return found


def signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown rows: accuracy, and difference to FedAvg in points, over all seeds and by seed."""
    lines = [
        "| variant | split | accuracy | less FedAvg | by seed |",
        "|---|---|---|---|---|",
    ]
    for name, splits in found.items():
        for split, figures in splits.items():
            low, high = figures["ci95"]
            accuracy = f"{100 * figures['accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            cells = [name, split.replace("_", " "), accuracy]
            if "to_fedavg" in figures:
                paired = figures["to_fedavg"]
                low, high = paired["ci95"]
                cells.append(f"{signed(paired['difference'])} [{signed(low)}, {signed(high)}]")
                cells.append(", ".join(signed(run["difference"]) for run in paired["per_seed"]))
            else:
                cells += ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(plan: Plan, variants: Sequence[str], file: Path) -> None:
    """Accuracy on the sites' validation patients over rounds: mean over seeds, one line a variant."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for variant in variants:
        curves = [plan.validation(variant, seed) for seed in plan.seeds]
        axis.plot([100 * sum(points) / len(points) for points in zip(*curves, strict=True)], label=variant)
    axis.set(xlabel="round", ylabel="accuracy, validation patients (%)")
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two synthetic sites, a few steps, a smaller model")
    parser.add_argument("--folder", type=Path, help="where runs are kept; with --quick a temporary one")
    parser.add_argument("--only", help=f"of {', '.join(VARIANTS)}, with commas between; {PLAIN} always")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rounds", type=int, help="rounds of every run; the study's unless given")
    parser.add_argument("--test-questions", type=int, help="test questions a patient; the study's unless given")
    parser.add_argument("--plot", type=Path, help="also draw accuracy over rounds into this file")
    cache = user_cache_path("wardround") / "models"
    parser.add_argument("--cache", type=Path, default=cache, help="where the built-in model lies, or is put once built")
    given = parser.parse_args()
    if given.folder is None and not given.quick:
        parser.error("give --folder, where finished runs are kept")
    return given


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The plain accuracies, and every variant's difference to FedAvg with its 95 % interval."""
    values = {}
    for name, splits in found.items():
        for split, figures in splits.items():
            values[f"{name}_{split}"] = figures["accuracy"]
            if "to_fedavg" in figures:
                low, high = figures["to_fedavg"]["ci95"]
                values[f"{name}_{split}_difference"] = figures["to_fedavg"]["difference"]
                values |= {f"{name}_{split}_low": low, f"{name}_{split}_high": high}
    return values


def named_variants(quick: bool, only: str | None) -> list[str]:
    """FedAvg first, then the variants asked for in their own order.

    Raises:
        UserError: an unknown name.
    """
    asked = only.split(",") if only else list(QUICK_VARIANTS if quick else VARIANTS)
    for name in asked:
        if name not in VARIANTS:
            raise UserError(f"--only {name}: there is no such variant.", f"Choose from {', '.join(VARIANTS)}.")
    return [name for name in VARIANTS if name == PLAIN or name in asked]


def main() -> None:
    given = read_arguments()
    # One thread, as a worker of `wardround simulate` has.
    torch.set_num_threads(1)
    study = chosen_study(given.quick, given.rounds, given.test_questions)
    with tempfile.TemporaryDirectory() as temporary:
        seeds = list(range(study.seed, study.seed + (2 if given.quick else given.seeds)))
        plan = Plan(study, given.folder or Path(temporary), given.cache, seeds)
        variants = named_variants(given.quick, given.only)
        play_all(plan, variants)
        found = compared(plan, variants)
        print(f"{len(study.sites.train)} sites, {study.rounds.rounds} rounds of {study.rounds.local_steps} steps, "
              f"seeds {', '.join(str(seed) for seed in seeds)}")  # fmt: skip
        print(table(found))
        if given.plot:
            plot(plan, variants, given.plot)
    print(json.dumps({name: round(value, 5) for name, value in ratios(found).items()}))


if __name__ == "__main__":
    main()
