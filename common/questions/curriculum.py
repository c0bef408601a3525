"""Which training questions are asked, and how often: `[curriculum]` of a study.

A question carries its site, task, feature, section and choices, and once a model has answered it several times
(`common/evaluation/probe.py`) its pass rate, the share of right answers.
"""

import numpy as np
import polars as pl

from common.errors import UserError
from common.questions.randomness import hash_keys, uniform
from common.study import Curriculum, Study


def weigh(questions: pl.DataFrame, curriculum: Curriculum, seed: int) -> pl.DataFrame:
    """Each question as often as the weight of its section says: 2 is twice, 0.5 is one in two, drawn by question.

    The copies of a question stand together; without weights the frame is the same.

    Args:
        questions: question frame (docs/design.md).
    """
    if not curriculum.weights:
        return questions
    weights = questions["section"].replace_strict(curriculum.weights, default=1.0, return_dtype=pl.Float64).to_numpy()
    draws = uniform(hash_keys(seed, "weigh", questions["question_id"]), "weigh", 1)[:, 0]
    return questions[np.repeat(np.arange(len(weights)), np.floor(weights + draws).astype(np.int64))]


def worth_asking(questions: pl.DataFrame, rates: pl.DataFrame, study: Study) -> pl.DataFrame:
    """The questions that the study's `curriculum.drop` leaves, in their order.

    Args:
        rates: `question_id` and `pass_rate` of all of them.

    Raises:
        UserError: fewer are left than one training step takes.
    """
    dropped = [{"always_right": 1.0, "never_right": 0.0}[kind] for kind in study.curriculum.drop]
    kept = questions.join(
        rates.filter(~pl.col("pass_rate").is_in(dropped)), on="question_id", how="semi", maintain_order="left"
    )
    if kept.height < study.grpo.prompts_per_step:
        raise UserError(
            f"curriculum.drop leaves {kept.height} of {questions.height} training questions, fewer than "
            f"grpo.prompts_per_step = {study.grpo.prompts_per_step}.",
            "Drop one kind only, lower grpo.prompts_per_step or raise questions.per_patient.",
        )
    return kept
