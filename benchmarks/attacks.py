"""What attacks find out about patients from one hospital's training: without protection, and at epsilon 8, 3 and 1.

The first 60 patients of the first hospital of studies/demo.toml, one question of each, a small model of the built-in
kind, and no other site to hide behind: many steps on few patients, so that there is something to find. Every row is the
same training but for [privacy], whose noise is chosen to end at the epsilon; figures are means over seeds, with the
lowest and highest. The questions are made with the site's own codebook, which epsilon here does not cover: a private
study needs one from a file. Columns: epsilon by the accountant; the lower bound that canaries give at 95 %
(arXiv 2305.08846); the membership test by reward gain, and by drift (arXiv 2511.14045); what the gradient of a single
step on one patient tells of the words in its record.

    OMP_NUM_THREADS=1 python -m benchmarks.attacks [--seeds N] [--steps N] [--only EPSILON,EPSILON]
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import polars as pl
from platformdirs import user_cache_path
from transformers.utils.logging import disable_progress_bar

from common.models.builtin import build_builtin
from common.privacy import Privacy
from common.study import Study, parse_study, read_study
from common.tasks.site_questions import site_questions
from server.attacks.attack import Found, attack
from server.frames import public_cohort, registries

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
HEAD = ("protection", "epsilon, at most", "at least", "membership AUC", "found at 0.1 %, %", "found at 1 %, %",
        "drift AUC", "words AUC")  # fmt: skip
NONE = "none"
ROWS = (NONE, "8", "3", "1")
PATIENTS, EACH = 60, 24
"""Patients of the hospital, and how many of them are canaries, and as many the membership test's."""
RATE, DELTA = 0.2, 1e-3
"""Each patient is drawn into a step with this probability; delta is below one by the number of patients."""


def chosen_study(steps: int) -> Study:
    study = read_study(DEMO)
    values = study.model_dump(mode="json", exclude_none=True)
    values["sites"] |= {"train": list(study.sites.train[:1]), "unseen": []}
    values["model"] |= {"builtin": {"hidden": 32, "layers": 1, "warmup_steps": 60}}
    values["questions"] |= {"per_patient": 1}
    values["grpo"] |= {"prompts_per_step": 8, "group_size": 8, "beta": 0.0, "learning_rate": 5e-3}
    values["rounds"] |= {"rounds": 1, "local_steps": steps, "validation_patients": 0}
    return parse_study(values, str(DEMO))


def private(study: Study, epsilon: float) -> Study:
    """The study with the least noise that ends at this epsilon, to two decimals of the multiplier."""
    low, high = 0.3, 64.0
    while high - low > 0.01:
        noise = (low + high) / 2
        low, high = (noise, high) if privacy(noise).epsilon(study.total_steps) > epsilon else (low, noise)
    return study.model_copy(update={"privacy": privacy(high)})


def privacy(noise: float) -> Privacy:
    return Privacy(clip=0.2, noise_multiplier=noise, sample_rate=RATE, patients_per_step=round(RATE * PATIENTS),
                   delta=DELTA, accountant="rdp")  # fmt: skip


def questions_of(study: Study) -> pl.DataFrame:
    """One question of each of the hospital's first patients."""
    asked = site_questions(registries(study, study.sites.train)[0], study).train
    asked = asked.unique("patient", keep="first", maintain_order=True)
    return asked.sort("patient").head(PATIENTS)


def row(label: str, found: list[Found]) -> str:
    def told(of: Callable[[Found], float], digits: int) -> str:
        values = [of(one) for one in found]
        return f"{mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    upper = "none" if found[0].upper is None else f"{found[0].upper:.2f}"
    columns = (
        label,
        upper,
        told(lambda one: one.lower, 2),
        told(lambda one: one.auc, 2),
        told(lambda one: 100 * one.tpr_01, 0),
        told(lambda one: 100 * one.tpr_1, 0),
        told(lambda one: one.drift_auc, 2),
        told(lambda one: one.words, 2),
    )
    return f"| {' | '.join(columns)} |"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between")
    given = parser.parse_args()
    disable_progress_bar()
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    study = chosen_study(given.steps)
    model = build_builtin(study, public_cohort(study), user_cache_path("wardround") / "models")
    questions = questions_of(study)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for label in given.only.split(","):
        guarded = study if label == NONE else private(study, float(label))
        seeds = range(study.seed, study.seed + given.seeds)
        found = [attack(guarded.with_seed(seed), questions, model, EACH, seed) for seed in seeds]
        print(row(label if label == NONE else f"epsilon {label}", found), flush=True)


if __name__ == "__main__":
    main()
