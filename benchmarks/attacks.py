"""What attacks find out about patients from one hospital's training, without protection and with it.

Patients of the first hospital of studies/demo.toml, one question of each, a small model of the built-in kind, and no
other site to hide behind: many steps on few patients, half of them canaries, so that there is something to find. Rows:
no protection; a secure sum, where the attacker of a single step sees it added up with those of other sites; and epsilon
8, 3 and 1, the same training with the least noise that ends there. Figures are means over seeds, with the lowest and
highest. The questions are made with the site's own codebook, which epsilon here does not cover: a private study needs
one from a file. Columns: epsilon by the accountant; the lower bound that canaries give at 95 % (arXiv 2305.08846); the
membership test by reward gain, and by drift (arXiv 2511.14045); what the gradient of a single step on one patient tells
of the words in its record.

    OMP_NUM_THREADS=1 python -m benchmarks.attacks [--seeds N] [--steps N] [--only ROW,ROW]
    OMP_NUM_THREADS=1 python -m benchmarks.attacks --quick
"""

import argparse
import json
import os
from pathlib import Path
from statistics import mean

import polars as pl
import torch
from platformdirs import user_cache_path
from transformers.utils.logging import disable_progress_bar

from benchmarks._epsilon import with_epsilon
from common.models.builtin import build_builtin
from common.models.policy import load_policy
from common.privacy import Privacy
from common.study import Study, parse_study, read_study
from common.tasks.site_questions import site_questions
from server.attacks.attack import INVERTED, Found, attack
from server.attacks.inversion import words_told
from server.attacks.training import toss
from server.frames import public_cohort, registries

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
NONE, SUM = "none", "sum-"
ROWS = (NONE, f"{SUM}3", f"{SUM}8", "8", "3", "1")
HEAD = ("protection", "epsilon, at most")
COLUMNS = {
    "lower": "epsilon, at least",
    "auc": "membership AUC",
    "tpr_01": "found at 0.1 %",
    "tpr_1": "found at 1 %",
    "drift_auc": "drift AUC",
    "words": "words AUC",
}
SEEDS, STEPS, QUICK_STEPS = 3, 40, 4
EACH = 48
"""Patients of the hospital who are canaries, and as many for the membership test; there are no others."""
RATE = 0.5
PRIVACY = Privacy(clip=0.1, noise_multiplier=1.0, sample_rate=RATE, patients_per_step=round(RATE * EACH), delta=1e-3,
                  accountant="rdp")  # fmt: skip
"""About `EACH` patients are in, by their coins; delta is below one by their number."""


def chosen_study(steps: int) -> Study:
    study = read_study(DEMO)
    values = study.model_dump(mode="json", exclude_none=True)
    values["sites"] |= {"train": list(study.sites.train[:1]), "unseen": []}
    values["model"] |= {"builtin": {"hidden": 32, "layers": 1, "warmup_steps": 400}}
    values["questions"] |= {"per_patient": 1}
    values["grpo"] |= {"prompts_per_step": round(RATE * EACH), "group_size": 8, "beta": 0.0, "learning_rate": 2e-3}
    values["rounds"] |= {"rounds": 1, "local_steps": steps, "validation_patients": 0}
    return parse_study(values, str(DEMO))


def private(study: Study, epsilon: float) -> Study:
    return study.model_copy(update={"privacy": with_epsilon(PRIVACY, study.total_steps, epsilon)})


def questions_of(study: Study) -> pl.DataFrame:
    """One question of each of the hospital's first patients."""
    asked = site_questions(registries(study, study.sites.train)[0], study).train
    asked = asked.unique("patient", keep="first", maintain_order=True)
    return asked.sort("patient").head(2 * EACH)


def words_of_sum(study: Study, questions: pl.DataFrame, model: Path, sites: int) -> float:
    """As `Found.words`, of the sum of so many sites' steps."""
    asked = toss(questions, EACH, study.seed).questions
    return words_told(load_policy(study, model), study, asked, INVERTED, sites)


def by_column(found: list[Found]) -> dict[str, list[float]]:
    """The value of each seed."""
    return {
        "lower": [one.lower for one in found],
        "auc": [one.auc for one in found],
        "tpr_01": [one.tpr_01 for one in found],
        "tpr_1": [one.tpr_1 for one in found],
        "drift_auc": [one.drift_auc for one in found],
        "words": [one.words for one in found],
    }


def row(label: str, upper: str, values: dict[str, list[float]]) -> str:
    told = [
        f"{mean(values[name]):.2f} [{min(values[name]):.2f}, {max(values[name]):.2f}]" if name in values else ""
        for name in COLUMNS
    ]
    return f"| {' | '.join((label, upper, *told))} |"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps, to see that it runs")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between")
    return parser.parse_args()


def main() -> None:
    given = read_arguments()
    torch.set_num_threads(1)
    disable_progress_bar()
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    study = chosen_study(given.steps or (QUICK_STEPS if given.quick else STEPS))
    model = build_builtin(study, public_cohort(study), user_cache_path("wardround") / "models")
    questions = questions_of(study)
    seeds = range(study.seed, study.seed + (given.seeds or (1 if given.quick else SEEDS)))
    print(f"| {' | '.join((*HEAD, *COLUMNS.values()))} |\n|{'---|' * (len(HEAD) + len(COLUMNS))}", flush=True)
    ratios: dict[str, float] = {}
    for label in given.only.split(","):
        upper = "none"
        if label.startswith(SUM):
            sites = int(label.removeprefix(SUM))
            values = {"words": [words_of_sum(study.with_seed(seed), questions, model, sites) for seed in seeds]}
        else:
            guarded = study if label == NONE else private(study, float(label))
            found = [attack(guarded.with_seed(seed), questions, model, EACH, seed) for seed in seeds]
            values = by_column(found)
            upper = upper if found[0].upper is None else f"{found[0].upper:.2f}"
        print(row(label, upper, values), flush=True)
        ratios |= {f"{label}_{name}": mean(each) for name, each in values.items()}
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
