"""All questions that a study asks about some patients: those of each of its tasks, one task after the other."""

from collections.abc import Iterable

import polars as pl

from common.questions.building import Built
from common.questions.codebook import Codebook
from common.registry.registry import Registry
from common.study import Questions
from common.tasks.forecast import FORECAST
from common.tasks.masked_value import MASKED_VALUE
from common.tasks.outcome import OUTCOME

TASKS = {task.name: task for task in (MASKED_VALUE, OUTCOME, FORECAST)}


def build_tasks(
    registry: Registry,
    patients: Iterable[str],
    codebook: Codebook,
    spec: Questions,
    seed: int,
    per_patient: int | None,
) -> Built:
    """Args: per_patient: questions of EACH task about a record; None for all."""
    asked = sorted(set(patients))
    built = [TASKS[name].build(registry, asked, codebook, spec, seed, per_patient) for name in spec.tasks]
    return Built(pl.concat([b.questions for b in built]), sum(b.dropped for b in built))
