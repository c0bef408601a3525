"""All questions of one site for one study: the same at the hospital, in the simulation and in the pooled run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from common.errors import UserError
from common.questions.codebook import Codebook, fit_codebook
from common.questions.curriculum import weigh
from common.questions.randomness import derive_seed, hash_keys
from common.registry.registry import Registry
from common.registry.splits import split_patients
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


def site_questions(registry: Registry, study: Study) -> SiteQuestions:
    """Split the patients, fit the codebook on the training side and build the three sets.

    The validation patients are training patients put aside: they help to fit the codebook, nothing is trained on
    them. Who is where follows from the study's seed and the patient alone.

    Raises:
        UserError: no training patient is left, or a task has nothing to ask here.
    """
    spec, seed = study.questions, derive_seed(study.seed, "questions")
    sides = split_patients(registry.frame["patient"].to_list(), derive_seed(study.seed, "split"), spec.test_fraction)
    training = sides["train"]
    aside = choose(training, study.rounds.validation_patients, derive_seed(study.seed, "validation"))
    tested = choose(sides["test"], study.evaluation.patients_per_site, derive_seed(study.seed, "test"))
    kept = sorted(set(training) - set(aside))
    if not kept:
        raise UserError(
            f"Site {registry.site}: no training patient is left after rounds.validation_patients are put aside.",
            "Lower rounds.validation_patients or questions.test_fraction, or give the site more patients.",
        )
    rows = rows_to_fit(registry.frame, training, spec)
    codebook = fit_codebook(rows, registry.features, spec, derive_seed(study.seed, "codebook"))
    train = build_tasks(registry, kept, codebook, spec, seed, spec.per_patient)
    require_tasks(registry, train.questions, spec)
    validation = build_tasks(registry, aside, codebook, spec, seed, spec.per_patient)
    test = build_tasks(registry, tested, codebook, spec, seed, study.evaluation.questions_per_patient)
    shuffled = shuffle(train.questions, derive_seed(study.seed, "shuffle"))
    return SiteQuestions(
        codebook,
        dropped=train.dropped + validation.dropped + test.dropped,
        train=weigh(shuffled, study.curriculum, seed),
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


def rows_to_fit(frame: pl.DataFrame, training: Sequence[str], spec: Questions) -> pl.DataFrame:
    """The training patients' rows; under `paper` every row, test patients included, as the reference has it."""
    return frame if spec.fidelity == "paper" else frame.filter(pl.col("patient").is_in(training))


def choose(patients: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` patients with the lowest hashes, sorted: one more patient displaces one at most."""
    ranked = sorted(zip(hash_keys(seed, "choose", patients).tolist(), patients, strict=True))
    return sorted(patient for _, patient in ranked[:count])


def shuffle(questions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Order by a hash of (seed, question), which no order before it can influence."""
    return questions[np.argsort(hash_keys(seed, "shuffle", questions["question_id"]), kind="stable")]
