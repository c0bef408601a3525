"""Which patients of a site do what in a study, and the questions that follow.

Three groups, disjoint and decided patient by patient by hashes of (seed, patient): `test` patients are asked
in the end and never before, `validation` patients draw the learning curve, `train` patients are learned from.
Codebooks are fitted on `train` patients alone. Every arm of a study uses these same frames.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from common.errors import UserError
from common.questions.building import build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.registry.registry import PATIENT, Registry, concat_registries
from common.registry.splits import split_patients
from common.study import Study


@dataclass(frozen=True)
class Roles:
    """Patient identifiers by role, each sorted."""

    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True)
class SiteQuestions:
    """A training site's own frames, and the patients behind the training questions."""

    train: pl.DataFrame
    validation: pl.DataFrame
    patients: int


def first_by_hash(patients: Sequence[str], number: int, *salt: object) -> list[str]:
    """`number` patients drawn by a hash of (salt, identifier), sorted: the same whoever else is there."""
    prefix = "\x1f".join(str(part) for part in salt)
    ranked = sorted(patients, key=lambda p: (hashlib.sha256(f"{prefix}\x1f{p}".encode()).digest(), p))
    return sorted(ranked[:number])


def patient_roles(registry: Registry, study: Study) -> Roles:
    """The roles of a training site's patients.

    Raises:
        UserError: nobody is left to train on.
    """
    sides = split_patients(registry.frame[PATIENT], study.seed, study.questions.test_fraction)
    validation = first_by_hash(sides["train"], study.rounds.validation_patients, "validation", study.seed)
    aside = set(validation)
    train = [patient for patient in sides["train"] if patient not in aside]
    if not train:
        raise UserError(
            f"Site {registry.site!r} has no patients left to train on: {len(sides['train'])} before "
            f"{len(validation)} were put aside for validation.",
            "Lower rounds.validation_patients.",
        )
    return Roles(train, validation, sides["test"])


def rows_of(registry: Registry, patients: Sequence[str]) -> pl.DataFrame:
    return registry.frame.filter(pl.col(PATIENT).is_in(list(patients)))


def site_codebook(registry: Registry, study: Study) -> Codebook:
    roles = patient_roles(registry, study)
    return fit_codebook(rows_of(registry, roles.train), registry.features, study.questions, study.seed)


def training_questions(registry: Registry, study: Study) -> SiteQuestions:
    """What a training site learns from and draws its learning curve on."""
    roles, codebook = patient_roles(registry, study), site_codebook(registry, study)
    spec = study.questions
    train = build_questions(registry, roles.train, codebook, spec, study.seed, spec.per_patient)
    validation = build_questions(registry, roles.validation, codebook, spec, study.seed, spec.per_patient)
    return SiteQuestions(train, validation, len(roles.train))


def held_out_questions(registry: Registry, study: Study) -> pl.DataFrame:
    """Test questions on a training site's held-out patients, in the words of its own codebook."""
    roles, codebook = patient_roles(registry, study), site_codebook(registry, study)
    chosen = first_by_hash(roles.test, study.evaluation.patients_per_site, "test", study.seed)
    per_patient = study.evaluation.questions_per_patient
    return build_questions(registry, chosen, codebook, study.questions, study.seed, per_patient)


def pooled_codebook(registries: Sequence[Registry], study: Study) -> Codebook:
    """Fitted on the train patients of all training sites: for hospitals that took no part."""
    pooled = concat_registries(registries, "pooled")
    patients = [patient for registry in registries for patient in patient_roles(registry, study).train]
    return fit_codebook(rows_of(pooled, patients), pooled.features, study.questions, study.seed)


def unseen_questions(registry: Registry, codebook: Codebook, study: Study) -> pl.DataFrame:
    """Test questions at a site that took no part.

    Args:
        codebook: `pooled_codebook` of the training sites, so that no patient of this site shapes a question.
            Features that no training site uses are neither shown nor asked.
    """
    known = tuple(f for f in registry.features if f.column in codebook.columns)
    seen = Registry(registry.site, known, registry.frame.select(PATIENT, *(f.column for f in known)))
    chosen = first_by_hash(sorted(set(seen.frame[PATIENT])), study.evaluation.patients_per_site, "test", study.seed)
    per_patient = study.evaluation.questions_per_patient
    return build_questions(seen, chosen, codebook, study.questions, study.seed, per_patient)
