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
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from benchmarks._variants import Variants, ratios, table
from common.errors import UserError
from common.model import Builtin
from common.study import Study, parse_study, read_study

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


def with_changes(study: Study, variant: str) -> Study:
    values = study.model_dump(mode="json", exclude_none=True)
    for name, settings in VARIANTS[variant].items():
        values[name] |= settings
    return parse_study(values, variant)


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


def plot(variants: Variants, file: Path) -> None:
    """Accuracy on the sites' validation patients over rounds: mean over seeds, one line a variant."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for name in variants.studies:
        curves = [variants.validation(name, seed) for seed in variants.seeds]
        axis.plot([100 * sum(points) / len(points) for points in zip(*curves, strict=True)], label=name)
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
        studies = {name: with_changes(study, name) for name in named_variants(given.quick, given.only)}
        variants = Variants(studies, given.folder or Path(temporary), given.cache, seeds)
        variants.play_all()
        found = variants.compared()
        print(f"{len(study.sites.train)} sites, {study.rounds.rounds} rounds of {study.rounds.local_steps} steps, "
              f"seeds {', '.join(str(seed) for seed in seeds)}")  # fmt: skip
        print(table(found, "FedAvg"))
        if given.plot:
            plot(variants, given.plot)
    print(json.dumps({name: round(value, 5) for name, value in ratios(found).items()}))


if __name__ == "__main__":
    main()
