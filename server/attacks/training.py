"""A site's training as an attacker would have it: which patients were in is decided by coins that the attacker knows
the odds of, and some are canaries, whose rewarded answers are wrong, so that nothing but their presence teaches them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.errors import UserError
from common.grpo.local import LocalTrainer
from common.grpo.patient_dp import PatientTrainer
from common.models.policy import Policy
from common.questions.randomness import hash_keys
from common.study import Study


@dataclass(frozen=True)
class Tossed:
    """A site's questions for an attacked training.

    Attributes:
        questions: question frame, canaries' answers replaced.
        canaries, members: patients whose presence a coin decides, sorted; members keep their answers.
        inside: of both together, those whose coin says `in`.
    """

    questions: pl.DataFrame
    canaries: tuple[str, ...]
    members: tuple[str, ...]
    inside: frozenset[str]

    @property
    def trained_on(self) -> pl.DataFrame:
        """All patients but those whose coin says `out`."""
        outside = {*self.canaries, *self.members} - self.inside
        return self.questions.filter(~pl.col("patient").is_in(list(outside)))

    def is_inside(self, patients: tuple[str, ...]) -> NDArray[np.bool_]:
        return np.array([patient in self.inside for patient in patients])


def toss(questions: pl.DataFrame, each: int, seed: int) -> Tossed:
    """Draw canaries and members, `each` of both, and toss their coins.

    Args:
        questions: question frame of a site's training patients; those without choices are left out.

    Raises:
        UserError: the site has fewer patients than that.
    """
    asked = questions.filter(pl.col("choices").list.len() > 1)
    patients = sorted(set(asked["patient"]))
    if len(patients) < 2 * each:
        raise UserError(
            f"{len(patients)} training patients cannot be {each} canaries and as many others whose coins are tossed.",
            "Lower --canaries.",
        )
    order = np.argsort(hash_keys(seed, "attack: order", patients))
    chosen = [patients[place] for place in order[: 2 * each]]
    coins = hash_keys(seed, "attack: coin", chosen) % np.uint64(2)
    inside = frozenset(name for name, coin in zip(chosen, coins, strict=True) if coin)
    canaries = tuple(sorted(chosen[:each]))
    return Tossed(mislabelled(asked, canaries, seed), canaries, tuple(sorted(chosen[each:])), inside)


def mislabelled(questions: pl.DataFrame, canaries: tuple[str, ...], seed: int) -> pl.DataFrame:
    """The questions with another choice rewarded, drawn by a hash, where the patient is a canary."""
    shift = pl.Series("shift", hash_keys(seed, "attack: answer", questions["question_id"]))
    count = pl.col("choices").list.len()
    other = (pl.col("answer") + 1 + (shift % (count - 1).cast(pl.UInt64)).cast(pl.Int64)) % count.cast(pl.Int64)
    canary = pl.col("patient").is_in(list(canaries))
    changed = questions.with_columns(answer=pl.when(canary).then(other).otherwise("answer"))
    return changed.with_columns(reference=pl.col("choices").list.get(pl.col("answer")))


def trainer_of(policy: Policy, study: Study, questions: pl.DataFrame, stream: str) -> LocalTrainer:
    """The study's trainer on these questions: private steps where it has [privacy], their noise from the seed."""
    if study.privacy is None:
        return LocalTrainer(policy, study, questions, stream)
    trainer = PatientTrainer(policy, study, questions, stream)
    # A site's secret is random; an attack that is to be played again needs one that can be made again.
    trainer.begin(hashlib.sha256(f"{study.seed}|{stream}".encode()).digest(), stream)
    return trainer


def train(policy: Policy, study: Study, questions: pl.DataFrame, folder: Path) -> None:
    """All steps of the study at one site, from the weights in the policy."""
    trainer_of(policy, study, questions, "attacked").run(0, study.total_steps, folder)
