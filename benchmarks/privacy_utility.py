"""What differential privacy for each patient costs in accuracy: no privacy beside epsilon 8, 3 and 1.

The federated arm of studies/demo.toml with larger hospitals, and of studies/ist.toml (eight countries as hospitals),
once for each row and seed. Every row has the same base model, questions, steps, learning rate and trained parameters,
and the codebook of the study's public cohort, since a private study takes none from the patients. The noise is the
least that ends at the epsilon. Training is chosen for privacy, not for the highest accuracy without it: few steps, each
on many patients with several questions, and LoRA of rank 1, because the noise grows with the square root of the number
of trained weights and the gradient does not.

The row without privacy is not quite the same without the noise: its steps take as many questions as a private step
takes on average, but by shuffled epochs of questions where a private step draws patients; and its gradient is clipped
as a whole, not patient by patient.

Differences are paired over the same patients and questions. What is finished under --folder is not run again, and a run
that was killed goes on from its last round.

    OMP_NUM_THREADS=1 python -m benchmarks.privacy_utility --folder FOLDER [--only TABLE] [--seeds N] [--rounds N]
    OMP_NUM_THREADS=1 python -m benchmarks.privacy_utility --quick [--only TABLE]
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from benchmarks._epsilon import with_epsilon
from benchmarks._variants import Variants, ratios, table
from common.privacy import Privacy
from common.questions.codebook_file import to_toml
from common.study import Study, parse_study, read_study, with_codebook_file
from common.tasks.site_questions import own_codebook
from server.frames import public_cohort

STUDIES = Path(__file__).parent.parent / "studies"
PLAIN = "no-privacy"
EPSILONS = (8, 3, 1)
SEEDS, QUICK_SEEDS, QUICK_SITES = 3, 1, 2


@dataclass(frozen=True)
class Setting:
    """What one table is measured on.

    Attributes:
        study: file name under studies/.
        changes: what it sets in the study's tables.
        privacy: of the private rows, but for the noise.
        patients: of each training hospital where they are drawn, instead of its own number; None keeps them.
        groups_at_once: of the row without privacy, where all of a step's questions together would be slow; a private
            step takes its patients one by one.
    """

    study: str
    changes: dict[str, dict[str, Any]]
    privacy: Privacy
    patients: int | None = None
    groups_at_once: int | None = None


SETTINGS = {
    "synthetic": Setting(
        "demo.toml",
        {
            "model": {"trainable": "lora", "lora": {"rank": 1}},
            "questions": {"per_patient": 4},
            "grpo": {"learning_rate": 2e-3},
            "rounds": {"rounds": 20, "local_steps": 1},
            "evaluation": {"patients_per_site": 100, "questions_per_patient": 5},
        },
        Privacy(clip=0.1, noise_multiplier=1.0, sample_rate=0.015, patients_per_step=48),
        patients=4000,
    ),
    "ist": Setting(
        "ist.toml",
        {
            "model": {"trainable": "lora", "lora": {"rank": 1}},
            "grpo": {"learning_rate": 2e-3},
            "rounds": {"rounds": 16, "local_steps": 1},
        },
        Privacy(clip=0.1, noise_multiplier=1.0, sample_rate=0.1, patients_per_step=64, questions_per_patient=2,
                delta=1e-4),
        groups_at_once=16,
    ),
}  # fmt: skip
QUICK_CHANGES: dict[str, dict[str, Any]] = {
    "model": {"builtin": {"hidden": 32, "layers": 1, "warmup_steps": 150, "warmup_batch": 8}},
    "rounds": {"rounds": 2, "local_steps": 1},
    "evaluation": {"patients_per_site": 5, "questions_per_patient": 2},
}
QUICK_PATIENTS_PER_STEP = 8


def setting_of(name: str, quick: bool) -> Setting:
    """The table's own, or one that only shows that the benchmark runs."""
    setting = SETTINGS[name]
    if not quick:
        return setting
    tables = setting.changes.keys() | QUICK_CHANGES.keys()
    changes = {table: setting.changes.get(table, {}) | QUICK_CHANGES.get(table, {}) for table in tables}
    few = setting.privacy.model_copy(update={"patients_per_step": QUICK_PATIENTS_PER_STEP, "sample_rate": 0.02})
    return replace(setting, changes=changes, privacy=few, patients=None)


def chosen_study(setting: Setting, folder: Path, quick: bool, rounds: int | None) -> Study:
    """The row without privacy. The codebook, and the files of larger hospitals, are written to `folder`."""
    file, privacy = STUDIES / setting.study, setting.privacy
    study = read_study(file)
    values = study.model_dump(mode="json", exclude_none=True)
    for name, changes in setting.changes.items():
        values[name] |= changes
    values["grpo"]["prompts_per_step"] = privacy.patients_per_step * privacy.questions_per_patient
    values["rounds"]["validation_patients"] = 0
    values["rounds"]["rounds"] = rounds or values["rounds"]["rounds"]
    if quick:
        values["sites"]["train"] = list(study.sites.train[:QUICK_SITES])
    if setting.patients is not None:
        values["simulation"]["site_configs"] = str(larger_hospitals(study, folder / "sites", setting.patients))
    return with_public_codebook(parse_study(values, str(file)), folder)


def larger_hospitals(study: Study, folder: Path, patients: int) -> Path:
    """A folder of the study's site files where each training hospital has so many patients; drawn ones only."""
    folder.mkdir(parents=True, exist_ok=True)
    for site in (*study.sites.train, *study.sites.unseen, *study.sites.public):
        lines = [f'extends = "{Path(study.simulation.site_configs) / site}.toml"']
        if site in study.sites.train:
            lines += ["[synthetic]", f"patients = {patients}"]
        (folder / f"{site}.toml").write_text("\n".join(lines) + "\n")
    return folder


def with_public_codebook(study: Study, folder: Path) -> Study:
    place = folder / "codebook.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(to_toml(own_codebook(public_cohort(study), study)))
    return with_codebook_file(study, place)


def rows(plain: Study, privacy: Privacy, groups_at_once: int | None = None) -> dict[str, Study]:
    """Name -> study: without privacy, and ending at each epsilon."""
    in_turn = plain.grpo.model_copy(update={"groups_at_once": groups_at_once})
    studies = {PLAIN: plain.model_copy(update={"grpo": in_turn})}
    for epsilon in EPSILONS:
        noised = with_epsilon(privacy, plain.total_steps, epsilon)
        values = plain.model_dump(mode="json", exclude_none=True) | {"privacy": noised.model_dump(mode="json")}
        studies[f"epsilon-{epsilon}"] = parse_study(values, f"epsilon {epsilon}")
    return studies


def described(row: str, study: Study) -> str:
    privacy = study.privacy
    if privacy is None:
        return f"{row}: {study.total_steps} steps of {study.grpo.prompts_per_step} questions at a site"
    return (f"{row}: {study.total_steps} steps of about {privacy.patients_per_step} patients, noise multiplier "
            f"{privacy.noise_multiplier:.2f}, epsilon {privacy.epsilon(study.total_steps):.2f} at delta "
            f"{privacy.delta:g}")  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two synthetic sites, a few patients a step")
    parser.add_argument("--folder", type=Path, help="where runs are kept; with --quick a temporary one")
    parser.add_argument("--only", choices=SETTINGS, help="one of the tables; all unless given, with --quick the first")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--rounds", type=int, help="rounds of every run, and the noise that fits them")
    cache = user_cache_path("wardround") / "models"
    parser.add_argument("--cache", type=Path, default=cache, help="where the built-in model lies, or is put once built")
    given = parser.parse_args()
    if given.folder is None and not given.quick:
        parser.error("give --folder, where finished runs are kept")
    return given


def main() -> None:
    given = read_arguments()
    # One thread, as a worker of `wardround simulate` has.
    torch.set_num_threads(1)
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in [given.only] if given.only else ["synthetic"] if given.quick else SETTINGS:
            folder, setting = (given.folder or Path(temporary)) / name, setting_of(name, given.quick)
            plain = chosen_study(setting, folder, given.quick, given.rounds)
            number = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
            seeds = range(plain.seed, plain.seed + number)
            studies = rows(plain, setting.privacy, setting.groups_at_once)
            variants = Variants(studies, folder / "runs", given.cache, seeds)
            variants.play_all()
            found = variants.compared()
            print(f"{name}: {len(plain.sites.train)} sites, seeds {', '.join(str(seed) for seed in seeds)}")
            print("\n".join(described(row, study) for row, study in variants.studies.items()))
            print(table(found, "no privacy"))
            values |= {f"{name}_{key}": value for key, value in ratios(found).items()}
    print(json.dumps({name: round(value, 5) for name, value in values.items()}))


if __name__ == "__main__":
    main()
