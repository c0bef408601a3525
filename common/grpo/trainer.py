"""TRL's GRPOTrainer with each prompt computed once per group.

Losses, advantages, KL and metrics stay TRL's. Two seams are used: `rollout_func` (public) generates, and
`_get_per_token_logps_and_entropies` (the one place where TRL runs the model in learning) scores.
"""

import time
from collections.abc import Callable
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer

from common.grpo.generation import sample
from common.grpo.logps import completion_logps
from common.models.policy import Policy
from common.study import PrefixRoute

RolloutFunc = Callable[[list[str], GRPOTrainer], dict[str, Any]]


class PrefixTrainer(GRPOTrainer):
    """GRPOTrainer on shared prefixes.

    Args:
        policy: the model being trained with its tokenizer.
        route: how a group shares its prompt, in generation and in learning.
        kwargs: TRL's own.
    """

    def __init__(self, policy: Policy, route: PrefixRoute = "auto", **kwargs: Any) -> None:
        self.policy, self.route = policy, route
        self.generating_seconds = 0.0
        super().__init__(
            model=cast(PreTrainedModel | PeftModel, policy.model),
            rollout_func=cast(RolloutFunc, rollout),
            processing_class=policy.tokenizer,
            **kwargs,
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Per-token log-probabilities `[B, C]` and entropies `[B, C]` of the completions (TRL's contract)."""
        assert not compute_aux_loss and all(value is None for value in images.values())
        logps, entropies = completion_logps(
            model, input_ids, attention_mask, logits_to_keep, self.temperature, self.route
        )
        return logps, entropies if compute_entropy else None, None


def rollout(prompts: list[str], trainer: PrefixTrainer) -> dict[str, Any]:
    """Sample a group of completions for each prompt; `prompts` comes with each prompt `group` times in a row."""
    group, longest = trainer.num_generations, trainer.max_completion_length
    assert group is not None and longest is not None
    policy = trainer.policy
    start = time.perf_counter()
    prompt_ids = policy.encode(prompts[::group])
    completion_ids = sample(
        policy.model, prompt_ids, group, longest, trainer.temperature, policy.eos, policy.pad, trainer.route
    )
    trainer.generating_seconds += time.perf_counter() - start
    return {
        "prompt_ids": [ids for ids in prompt_ids for _ in range(group)],
        "completion_ids": completion_ids,
        "logprobs": None,
    }
