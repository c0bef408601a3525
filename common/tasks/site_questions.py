"""All questions of one site for one study: the same at the hospital, in the simulation and in the pooled run."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from common.disk import named_disk_faults
from common.errors import UserError
from common.questions.building import Built
from common.questions.codebook import Codebook, fit_codebook, rows_to_fit
from common.questions.codebook_file import check_codebook
from common.questions.curriculum import weigh
from common.questions.randomness import choose, derive_seed, shuffle
from common.questions.streaming import slices, write_questions
from common.registry.registry import Registry
from common.registry.splits import split_patients
from common.registry.stored import StoredRegistry
from common.study import Questions, Study
from common.tasks.asking import build_tasks


@dataclass(frozen=True, eq=False)
class SiteQuestions:
    """Question frames (`building.SCHEMA`) with no patient in two of them, and the codebook behind them.

    `train` is shuffled and follows the weights of `[curriculum]`; `validation` (for the learning curve) and `test` are
    in the order of the registry. `dropped` questions of the three were left without a distractor (`paper` only).
    """

    codebook: Codebook
    dropped: int
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame


class Asked(NamedTuple):
    """One set of questions: about whom, and how many of each record (None: all)."""

    patients: Set[str]
    per_patient: int | None


class SitePlan(NamedTuple):
    """What a site's questions follow from."""

    codebook: Codebook
    train: Asked
    validation: Asked
    test: Asked

    def build(self, registry: Registry, asked: Asked, study: Study) -> Built:
        """The set's questions about the patients that `registry`, the site's or a slice of it, holds."""
        seed = derive_seed(study.seed, "questions")
        patients = [patient for patient in registry.patients if patient in asked.patients]
        return build_tasks(registry, patients, self.codebook, study.questions, seed, asked.per_patient)


def plan_site(registry: Registry | StoredRegistry, study: Study, codebook: Codebook | None = None) -> SitePlan:
    """Split the patients and fit the codebook on the training side.

    The validation patients are training patients put aside: they help to fit the codebook, nothing is trained on
    them. Who is where follows from the study's seed and the patient alone.

    Args:
        codebook: the one that all sites share, where the study has one; None fits the site's own.

    Raises:
        UserError: no training patient is left, or the codebook lacks one of the site's features.
    """
    spec, sides = study.questions, sides_of(registry, study)
    training = sides["train"]
    aside = choose(training, study.rounds.validation_patients, derive_seed(study.seed, "validation"))
    tested = choose(sides["test"], study.evaluation.patients_per_site, derive_seed(study.seed, "test"))
    kept = set(training) - set(aside)
    if not kept:
        raise UserError(
            f"Site {registry.about.site}: no training patient is left after rounds.validation_patients are put aside.",
            "Lower rounds.validation_patients or questions.test_fraction, or give the site more patients.",
        )
    if codebook is None:
        codebook = own_codebook(registry, study)
    else:
        check_codebook(codebook, registry.about.features, spec, "the common codebook")
    per_patient, tests = spec.per_patient, study.evaluation.questions_per_patient
    return SitePlan(codebook, Asked(kept, per_patient), Asked(set(aside), per_patient), Asked(set(tested), tests))


def site_questions(
    registry: Registry | StoredRegistry, study: Study, codebook: Codebook | None = None
) -> SiteQuestions:
    """The three sets of `plan_site`, in memory.

    Raises:
        UserError: as `plan_site`, or a task has nothing to ask here.
    """
    plan = plan_site(registry, study, codebook)
    trained = [plan.build(part, plan.train, study) for part in registry.parts()]
    validation, test = (plan.build(registry.of(asked.patients), asked, study) for asked in (plan.validation, plan.test))
    train = pl.concat(built.questions for built in trained)
    require_tasks(registry.about, train, study.questions)
    shuffled = shuffle(train, derive_seed(study.seed, "shuffle"))
    return SiteQuestions(
        plan.codebook,
        dropped=sum(built.dropped for built in trained) + validation.dropped + test.dropped,
        train=weigh(shuffled[: study.questions.per_site], study.curriculum, derive_seed(study.seed, "questions")),
        validation=validation.questions,
        test=test.questions,
    )


def require_tasks(registry: Registry, train: pl.DataFrame, spec: Questions) -> None:
    for task in spec.tasks:
        if task not in train["task"]:
            raise UserError(
                f"Site {registry.site}: there is no training question of the task {task!r}.",
                "Declare [[outcomes]] for it in the site's file, widen questions.ask, or take it out of "
                "questions.tasks.",
            )


def write_site_questions(
    registry: Registry | StoredRegistry, study: Study, folder: Path, codebook: Codebook | None = None
) -> dict[str, int]:
    """The three sets as `train.parquet`, `validation.parquet` and `test.parquet`, in the order of the registry and
    before `questions.per_site` and `[curriculum]`.

    Memory holds the registry (of a stored one, a part) and the questions of one slice of its patients.

    Returns:
        how many questions each file holds.

    Raises:
        UserError: as `plan_site`, or the folder cannot be written.
    """
    plan = plan_site(registry, study, codebook)
    with named_disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        name: write_questions(questions_of(registry, plan, asked, study), folder / f"{name}.parquet")
        for name, asked in (("train", plan.train), ("validation", plan.validation), ("test", plan.test))
    }


def questions_of(
    registry: Registry | StoredRegistry, plan: SitePlan, asked: Asked, study: Study
) -> Iterator[pl.DataFrame]:
    for part in registry.parts():
        for few in slices(part):
            yield plan.build(few, asked, study).questions


def sides_of(registry: Registry | StoredRegistry, study: Study) -> dict[str, list[str]]:
    """Training and test patients of a site."""
    drawn = derive_seed(study.seed, "split")
    return split_patients(registry.patients, drawn, study.questions.test_fraction, registry.about.sides)


def own_codebook(registry: Registry | StoredRegistry, study: Study) -> Codebook:
    """The site's own, whatever the study shares, fitted to `questions.codebook_patients` at most.

    Raises:
        UserError: no training patient.
    """
    fitted = registry.patients
    if study.questions.fidelity != "paper":
        most, drawn = study.questions.codebook_patients, derive_seed(study.seed, "codebook patients")
        fitted = choose(sides_of(registry, study)["train"], most, drawn)
    features = registry.about.features
    return fit_codebook(registry.of(fitted).frame, features, study.questions, derive_seed(study.seed, "codebook"))


def training_rows(registry: Registry, study: Study) -> pl.DataFrame:
    """The rows behind a codebook that sites share."""
    return rows_to_fit(registry.frame, sides_of(registry, study)["train"], study.questions)
