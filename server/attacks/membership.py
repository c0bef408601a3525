"""Was this patient in the training set? Two signals of a policy trained by verifiable rewards, and how well they tell.

DIBA (arXiv 2511.14045): supervised models betray their training data by a low loss; a policy trained by rewards never
imitates a text, but it earns more on the questions it was trained on (reward gain) and moves most there (drift), each
measured against the model that training began with. The patient is the unit: the mean over its questions.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.evaluation.answering import LETTERS, letter_scores
from common.models.policy import Policy

Floats = NDArray[np.float64]
BATCH = 64
"""Questions a forward pass."""


def letter_probabilities(policy: Policy, questions: pl.DataFrame) -> Floats:
    """Probability of each offered letter as the answer, [questions, 5]; 0 for letters that are not offered."""
    policy.model.eval()
    texts = [policy.prompt_text(s, p) + policy.answer_cue for s, p in questions.select("system", "prompt").iter_rows()]
    parts = [letter_scores(policy, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    scores = np.concatenate([part.double().numpy() for part in parts])
    offered = np.arange(len(LETTERS)) < questions["choices"].list.len().to_numpy()[:, None]
    scores = np.where(offered, scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def signals(questions: pl.DataFrame, before: Floats, after: Floats) -> pl.DataFrame:
    """Each patient's `gain` in the probability of the rewarded letter and `drift`, KL(after, before) in nats.

    Args:
        questions: `patient`, and `answer`, the rewarded choice.
        before, after: `letter_probabilities` of the model that training began with and of the trained one.
    """
    rewarded = np.arange(len(questions)), questions["answer"].to_numpy()
    logs = np.log(np.maximum(after, 1e-300)) - np.log(np.maximum(before, 1e-300))
    frame = questions.select("patient").with_columns(
        gain=pl.Series(after[rewarded] - before[rewarded]), drift=pl.Series((after * logs).sum(axis=1))
    )
    return frame.group_by("patient").mean().sort("patient")


def auc(scores: Floats, inside: NDArray[np.bool_]) -> float:
    """Probability that a member's score is above a non-member's, ties counted half."""
    members, others = scores[inside][:, None], scores[~inside][None, :]
    return float(((members > others) + 0.5 * (members == others)).mean())


def true_positives(scores: Floats, inside: NDArray[np.bool_], false_positives: float) -> float:
    """Largest share of members above a threshold that at most this share of the non-members is above.

    With n non-members no share below 1/n can be told from none.
    """
    others = np.sort(scores[~inside])[::-1]
    threshold = others[int(false_positives * len(others))]
    return float((scores[inside] > threshold).mean())
