"""All attacks on one site's part of a study, played on this machine."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from common.models.policy import load_policy
from common.study import Study
from server.attacks.inversion import words_told
from server.attacks.marks import embedding, marked, marks, moved
from server.attacks.membership import auc, letter_probabilities, signals, true_positives
from server.attacks.one_run import lower_epsilon, right_guesses
from server.attacks.training import toss, train

INVERTED = 8
"""Patients whose single steps are attacked."""


@dataclass(frozen=True)
class Found:
    """What the attacks found.

    Attributes:
        upper: epsilon of the site's training by the accountant; None without [privacy].
        lower: epsilon that the canaries rule out at 95 % confidence.
        right, guesses, canaries: right guesses of those made, of so many canaries.
        auc, tpr_01, tpr_1: of the membership test by the reward gain; the share of members found at 0.1 % and 1 %
            false positives.
        drift_auc: the same test by the drift.
        members: patients of that test.
        words: how well a single step tells a patient's words, AUC.
        sites: whose steps are seen added up there: 1 without [secure_sum].
    """

    upper: float | None
    lower: float
    right: int
    guesses: int
    canaries: int
    auc: float
    tpr_01: float
    tpr_1: float
    drift_auc: float
    members: int
    words: float
    sites: int

    def lines(self) -> list[str]:
        """For people to read."""
        upper = "no bound: the study has no [privacy]" if self.upper is None else f"{self.upper:.2f}"
        return [
            f"epsilon, at most           {upper}",
            f"epsilon, at least          {self.lower:.2f} at 95 % confidence: {self.right} of {self.guesses} guesses "
            f"about {self.canaries} canaries were right",
            f"membership, {self.members:4d} patients  AUC {self.auc:.2f}, found at 0.1 % / 1 % false alarms "
            f"{100 * self.tpr_01:.0f} % / {100 * self.tpr_1:.0f} %; by the drift AUC {self.drift_auc:.2f}",
            f"words from a single step   AUC {self.words:.2f} (0.50 tells nothing){self.summed}",
        ]

    @property
    def summed(self) -> str:
        return f", of {self.sites} sites added up" if self.sites > 1 else ""


def attack(study: Study, questions: pl.DataFrame, model: Path, each: int, seed: int) -> Found:
    """Train once with coins, and attack what came of it.

    A [secure_sum] hides single steps among those of the fewest sites that a sum may be of; canaries and members are
    looked for in this site's model alone, which is then more than the coordinator has.

    Which canaries were in is guessed of half of them, those whose token's row in the embedding moved most and least; by
    the reward gain where the embedding is not trained.

    Args:
        questions: question frame of one site's training patients.
        model: folder of the base model.
        each: canaries, and patients of the membership test.
        seed: of the coins; the study's own decides everything else.

    Raises:
        UserError: the site has too few patients.
    """
    tossed = toss(questions, each, seed)
    policy = load_policy(study, model)
    tokens = marks(policy, tossed.questions["prompt"].to_list(), each)
    sites = 1 if study.secure_sum is None else study.secure_sum.needed
    words = words_told(policy, study, tossed.questions, INVERTED, sites)
    by_canary = dict(zip(tossed.canaries, tokens, strict=True))
    tossed = replace(tossed, questions=marked(tossed.questions, by_canary))
    about = tossed.questions.filter(pl.col("patient").is_in([*tossed.canaries, *tossed.members]))
    rows, before = embedding(policy), letter_probabilities(policy, about)
    with tempfile.TemporaryDirectory() as folder:
        train(policy, study, tossed.trained_on, Path(folder))
    found = signals(about, before, letter_probabilities(policy, about))
    rows_after = embedding(policy)

    def of(patients: tuple[str, ...], signal: str) -> np.ndarray:
        return found.filter(pl.col("patient").is_in(list(patients)))[signal].to_numpy()

    guesses = each // 4 * 2
    if rows is None or rows_after is None:
        told = of(tossed.canaries, "gain")
    else:
        told = moved(rows, rows_after, list(tokens.values()))
    right = right_guesses(told, tossed.is_inside(tossed.canaries), guesses)
    delta = 0.0 if study.privacy is None else study.privacy.delta
    gain, inside = of(tossed.members, "gain"), tossed.is_inside(tossed.members)
    return Found(
        upper=None if study.privacy is None else study.privacy.epsilon(study.total_steps),
        lower=lower_epsilon(each, guesses, right, delta),
        right=right,
        guesses=guesses,
        canaries=each,
        auc=auc(gain, inside),
        tpr_01=true_positives(gain, inside, 0.001),
        tpr_1=true_positives(gain, inside, 0.01),
        drift_auc=auc(of(tossed.members, "drift"), inside),
        members=each,
        words=words,
        sites=sites,
    )
