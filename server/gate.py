"""The held-out gate: an outer step that loses too much accuracy on the public cohort is not taken (`rounds.gate`).

The questions are about test patients of the cohort, asked as the sites' own are, and the coordinator answers them with
the model before the step and after it. So one poisoned or diverged round does not reach the sites; it says nothing of
what a step does to patients unlike the cohort.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from common.evaluation.answering import answer
from common.evaluation.scoring import right
from common.models.policy import Policy, load_policy, load_trainable
from common.questions.codebook import Codebook
from common.questions.randomness import choose, derive_seed
from common.study import Study
from common.tasks.site_questions import own_codebook, sides_of
from common.tasks.unseen import questions_about
from common.update.tensors import State
from server.frames import keep, public_cohort
from server.round_store import Checkpoint


def gate_questions(study: Study, patients: int, codebook: Codebook | None) -> pl.DataFrame:
    """Question frame about so many test patients of the public cohort.

    Args:
        codebook: the one that the sites share; None takes the cohort's own.

    Raises:
        UserError: a cohort's file or table is missing or wrong.
    """
    public = public_cohort(study)
    asked = choose(sides_of(public, study)["test"], patients, derive_seed(study.seed, "gate"))
    known = own_codebook(public, study) if codebook is None else codebook
    return questions_about(asked, public, known, study, study.questions.per_patient)


@dataclass(frozen=True)
class Gate:
    """Answers the gate's questions; made by `open_gate`."""

    study: Study
    policy: Policy
    questions: pl.DataFrame
    worse_than: float

    def accuracy(self, model: State) -> float:
        load_trainable(self.policy, model)
        answered = answer(self.policy, self.questions, self.study.evaluation)
        return int(right(answered).sum()) / answered.height

    def pass_or_stay(self, before: Checkpoint, after: Checkpoint) -> Checkpoint:
        """`after`, or its round with the model and the outer optimiser's state of `before`.

        The notes get `gate`: `accuracy` of the model that stands, `tried` of the step's, and whether it was `taken`.
        """
        stood, tried = float(before.notes["gate"]["accuracy"]), self.accuracy(after.model)
        taken = tried >= stood - self.worse_than
        gate: dict[str, Any] = {"accuracy": tried if taken else stood, "tried": tried, "taken": taken}
        after = replace(after, notes={**after.notes, "gate": gate})
        return after if taken else replace(after, model=before.model, outer=before.outer)


def open_gate(study: Study, model: Path, codebook: Codebook | None, folder: Path) -> Gate | None:
    """The study's gate; None where it has none.

    Args:
        model: folder (or hub name) of the base model.
        folder: of the arm; the questions are kept there, so that a run that goes on asks the same.
    """
    spec = study.rounds.gate
    if spec is None:
        return None
    path = folder / "gate.parquet"
    if not path.exists():
        keep(path, gate_questions(study, spec.patients, codebook))
    return Gate(study, load_policy(study, model), pl.read_parquet(path), spec.worse_than)
