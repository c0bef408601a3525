"""Questions at hospitals that took no part: all their patients may be asked, none shapes a question.

The codebook is fitted on the training sites' training patients together; features that no training site uses
are neither shown nor asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from common.questions.codebook import Codebook, fit_codebook
from common.questions.randomness import choose, derive_seed
from common.registry.registry import PATIENT, Registry, concat_registries
from common.study import Study
from common.tasks.asking import build_tasks


def pooled_codebook(registries: Sequence[Registry], training: Mapping[str, Sequence[str]], study: Study) -> Codebook:
    """Fitted on the training patients (site -> identifiers) of all training sites.

    Raises:
        UserError: the sites do not share one feature dictionary, or a patient stands at two of them.
    """
    pooled = concat_registries(registries, "pooled")
    patients = sorted({patient for site in training.values() for patient in site})
    rows = pooled.frame.filter(pl.col(PATIENT).is_in(patients))
    return fit_codebook(rows, pooled.features, study.questions, derive_seed(study.seed, "codebook"))


def unseen_questions(registry: Registry, codebook: Codebook, study: Study) -> pl.DataFrame:
    """Test questions (question frame) about at most `evaluation.patients_per_site` patients of the site."""
    patients = sorted(set(registry.frame[PATIENT]))
    asked = choose(patients, study.evaluation.patients_per_site, derive_seed(study.seed, "test"))
    return questions_about(asked, registry, codebook, study, study.evaluation.questions_per_patient)


def questions_about(
    patients: Sequence[str], registry: Registry, codebook: Codebook, study: Study, per_patient: int | None
) -> pl.DataFrame:
    """Question frame about patients of a site, from what the codebook knows of their records.

    Args:
        per_patient: questions of each task per record; all unless given.
    """
    known = tuple(f for f in registry.features if f.quantity in codebook.columns)
    columns = [f.column for f in known]
    outcomes = tuple(o for o in registry.outcomes if o.column in columns)
    seen = replace(registry, features=known, frame=registry.frame.select(PATIENT, *columns), outcomes=outcomes)
    seed = derive_seed(study.seed, "questions")
    return build_tasks(seen, patients, codebook, study.questions, seed, per_patient).questions
