"""How often a model answers each question right, by sampling several answers to it."""

import polars as pl
import torch

from common.grpo.generation import sample
from common.grpo.local import derive_seed
from common.grpo.rewards import letters_of, right_answer
from common.models.policy import Policy
from common.study import Study

BATCH = 32
"""Questions a forward pass."""


def pass_rates(policy: Policy, questions: pl.DataFrame, study: Study) -> pl.DataFrame:
    """`question_id` and `pass_rate` (share of `curriculum.completions` answers that earn the reward) of each question.

    Answers are sampled as in training, at the study's temperature and length; the same seed and machine give the same
    rates. A question that stands several times is asked once.

    Args:
        questions: question frame (docs/design.md).
    """
    grpo, group = study.grpo, study.curriculum.completions
    asked = questions.unique("question_id", keep="first", maintain_order=True).sort("question_id")
    ids = policy.encode([policy.prompt_text(s, p) for s, p in asked.select("system", "prompt").iter_rows()])
    letters, references = letters_of(asked), asked["reference"].to_list()
    rates: list[float] = []
    policy.model.eval()
    for start in range(0, len(ids), BATCH):
        torch.manual_seed(derive_seed(study.seed, "probe", start, *asked["site"].unique().sort()))
        prompts = ids[start : start + BATCH]
        sampled = sample(
            policy.model,
            prompts,
            group,
            grpo.max_completion_tokens,
            grpo.temperature,
            policy.eos,
            policy.pad,
            grpo.prefix_route,
        )
        texts = policy.tokenizer.batch_decode(sampled, skip_special_tokens=True)
        right = [x for x in range(start, start + len(prompts)) for _ in range(group)]
        rewards = right_answer(texts, [letters[i] for i in right], [references[i] for i in right])
        rates += [sum(rewards[i : i + group]) / group for i in range(0, len(rewards), group)]
    return asked.select("question_id", pl.Series("pass_rate", rates, dtype=pl.Float64))
