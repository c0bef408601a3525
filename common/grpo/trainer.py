"""TRL's GRPOTrainer with each prompt computed once per group.

Losses, advantages, KL and metrics stay TRL's. Two seams are used: `rollout_func` (public) generates, and
`_get_per_token_logps_and_entropies` (the one place where TRL runs the model in learning) scores.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from common.grpo.generation import Completion, sample
from common.grpo.ranks import my_groups, world
from common.grpo.vllm import Server
from common.grpo.zero import Scorer, ZeroSteps
from common.models.policy import Policy
from common.study import PrefixRoute

RolloutFunc = Callable[[list[str], GRPOTrainer], dict[str, Any]]


class PrefixTrainer(GRPOTrainer):
    """GRPOTrainer on shared prefixes.

    Args:
        policy: the model being trained with its tokenizer.
        route: how a group shares its prompt, in generation and in learning.
        server: what samples instead of the policy in place; `send_weights` goes before each step.
        kwargs: TRL's own.
    """

    def __init__(
        self, policy: Policy, route: PrefixRoute = "auto", server: Server | None = None, **kwargs: Any
    ) -> None:
        self.policy, self.route, self.server = policy, route, server
        self.generating_seconds = 0.0
        self.zero: ZeroSteps | None = None
        """Where DeepSpeed shares the model out, from the first step on."""
        self.parts: int = kwargs["args"].steps_per_generation
        self.scored: list[dict[str, Tensor | None]] = []
        """This process's rows of a step with their advantages, in parts."""
        self.completion_ids: list[list[int]] = []
        """Tokens of the last completions, row by row."""
        self.sampled_before: list[Completion] | None = None
        """Completions of this process's next rows, where they are there before TRL asks for them."""
        super().__init__(
            model=cast(PreTrainedModel | PeftModel, policy.model),
            rollout_func=cast(RolloutFunc, rollout),
            processing_class=policy.tokenizer,
            **kwargs,
        )
        if server is not None:
            # From here on TRL weighs each sequence by how likely the learner finds what vLLM drew. As an argument it
            # would start TRL's own client, which needs vLLM in this environment; and weights are sent by us.
            self.use_vllm = True
            self._last_loaded_step = self.state.global_step

    def scorer(self) -> Scorer:
        return Scorer(self.policy.model, self.temperature, self.route)

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
        size = batch_size or len(input_ids)
        score: nn.Module = Scorer(self.accelerator.unwrap_model(model), self.temperature, self.route)
        if self.zero is not None and model is self.policy.model:
            score = self.zero.engine
        parts = [
            score(ids, mask, logits_to_keep)
            for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True)
        ]
        logps, entropies = (torch.cat(rows) for rows in zip(*parts, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, but for a step that is learned in parts: its rows stay in order, where TRL would shuffle them."""
        if self.parts == 1:
            return super()._prepare_inputs(generation_batch)
        if self._step % self.parts == 0:
            self.scored = split_tensor_dict(self._generate_and_score_completions(generation_batch), self.parts)
        return self.scored[self._step % self.parts]

    def send_weights(self) -> None:
        """Let the server sample from the policy as it is now; its seconds count as generating."""
        if self.server is None:
            return
        start = time.perf_counter()
        self.server.load(self.policy.model, self.accelerator)
        self.generating_seconds += time.perf_counter() - start

    def sample_groups(self, prompts: list[str], counts: list[int]) -> list[Completion]:
        """`counts[n]` completions of each of the distinct `prompts`, group by group."""
        longest, policy = self.max_completion_length, self.policy
        assert longest is not None
        start = time.perf_counter()
        # Of few prompts that several processes share out, one may have none.
        ids = policy.encode(prompts) if prompts else []
        if self.server is not None:
            sampled = self.server.sample(ids, counts, longest, self.temperature, policy.eos)
        else:
            sampled = self.sample_here(ids, counts, longest)
        self.generating_seconds += time.perf_counter() - start
        return sampled

    def sample_here(self, prompts: list[list[int]], counts: list[int], longest: int) -> list[Completion]:
        policy = self.policy
        with self.zero.whole() if self.zero is not None else nullcontext():
            rows = sample(policy.model, prompts, counts, longest, self.temperature, policy.eos, policy.pad, self.route)
        return [Completion(ids) for ids in rows]


def sampled_rows(prompts: list[str], trainer: PrefixTrainer) -> list[Completion]:
    """A completion of each row's prompt; the step's other rows are the other processes'."""
    group = trainer.num_generations
    assert group is not None
    counts = list(my_groups(len(prompts) * world() // group, group).values())
    starts = [0, *accumulate(counts)][:-1]
    return trainer.sample_groups([prompts[start] for start in starts], counts)


def rollout(prompts: list[str], trainer: PrefixTrainer) -> dict[str, Any]:
    """A completion of each of this process's rows; `prompts` are the rows', so a group's stand next to each other."""
    before, trainer.sampled_before = trainer.sampled_before, None
    sampled = sampled_rows(prompts, trainer) if before is None else before
    trainer.completion_ids = [completion.ids for completion in sampled]
    return {
        "prompt_ids": trainer.policy.encode(prompts),
        "completion_ids": trainer.completion_ids,
        "logprobs": None if trainer.server is None else [completion.logps for completion in sampled],
    }
