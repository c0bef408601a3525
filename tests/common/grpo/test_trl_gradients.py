"""Gradients of every loss on shared prefixes against TRL's own trainer, over random shapes, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from common.grpo.rewards import right_letter
from common.grpo.trainer import PrefixTrainer
from common.models.policy import Policy, load_policy, trainable_parameters
from common.study import Grpo, PrefixRoute, Study

Pair = tuple[PrefixTrainer, GRPOTrainer]
LOSSES = get_args(Grpo.model_fields["loss_type"].annotation)
LONGEST = 8
TEMPERATURE = 1.3


@pytest.fixture(scope="module", params=["all", "lora"])
def pair(
    request: pytest.FixtureRequest, make_study: Callable[..., Study], tiny_model: Path, tmp_path_factory: Any
) -> Pair:
    """Ours and TRL's trainer, each on a model of its own with the same weights."""
    policies = [load_policy(make_study(request.param), tiny_model) for _ in range(2)]
    for policy in policies:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():  # LoRA's B begins at zero
            for parameter in trainable_parameters(policy).values():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    common: dict[str, Any] = {
        "reward_funcs": right_letter,
        "args": GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trainer")),
            num_generations=2,
            per_device_train_batch_size=2,
            max_completion_length=LONGEST,
            temperature=TEMPERATURE,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        "train_dataset": Dataset.from_list([{"prompt": "a", "letter": "A"}]),
    }
    ours = PrefixTrainer(policies[0], **common)
    theirs = GRPOTrainer(model=policies[1].model, processing_class=policies[1].tokenizer, **common)
    for trainer in (ours, theirs):
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
    return ours, theirs


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Tensor]:
    """What TRL's loss takes: groups of unequal sizes and lengths, rows in any order."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    prompts = draw(st.lists(st.integers(2, 24), min_size=1, max_size=4))
    group = draw(st.permutations([n for n in range(len(prompts)) for _ in range(draw(st.integers(1, 4)))]))
    # One token after one other: policy and KL terms can nearly cancel, and float32 left 1.05e-5 there once.
    lengths = torch.tensor([draw(st.integers(2, LONGEST)) for _ in group])
    sizes = torch.tensor(prompts)[group]
    asked = torch.randint(3, 300, (len(prompts), max(prompts)), generator=generator)
    completion_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return {
        "prompt_ids": asked[group],
        "prompt_mask": (torch.arange(max(prompts)) >= max(prompts) - sizes[:, None]).long(),
        "completion_ids": torch.randint(3, 300, completion_mask.shape, generator=generator),
        "completion_mask": completion_mask,
        # Of one sign: advantages that cancel leave a gradient of rounding errors.
        "advantages": draw(st.sampled_from([-1.0, 1.0])) * (0.5 + torch.rand(len(group), generator=generator)),
        "num_items_in_batch": completion_mask.sum(),
        "noise": torch.randn(completion_mask.shape, generator=generator),
    }


def gradient(trainer: GRPOTrainer, policy: Policy, inputs: dict[str, Tensor]) -> Tensor:
    parameters = list(trainable_parameters(policy).values())
    loss = trainer.compute_loss(trainer.model, inputs)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("route", ["expanded", "packed"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches(), loss_type=st.sampled_from(LOSSES), beta=st.sampled_from([0.0, 0.3]), stale=st.booleans())
def test_gradients_are_those_of_trl(
    pair: Pair, route: PrefixRoute, batch: dict[str, Tensor], loss_type: str, beta: float, stale: bool
) -> None:
    ours, theirs = pair
    ours.route = route
    for trainer in pair:
        trainer.loss_type, trainer.beta = loss_type, beta
        # The others' clip range is about 1; cispo's is the bound of the ratio, here so that some are above it.
        trainer.epsilon_high = 1.0 if loss_type == "cispo" else 0.2
    inputs = {name: value for name, value in batch.items() if name != "noise"}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logps, _, _ = theirs._get_per_token_logps_and_entropies(
            theirs.model, ids, mask, batch["completion_ids"].shape[1]
        )
    # A reference that is another model, and ratios of which some are clipped.
    inputs["ref_per_token_logps"] = logps + 0.5 * batch["noise"]
    if stale:
        inputs["old_per_token_logps"] = logps + 0.05 * batch["noise"]
    tokenizer: PreTrainedTokenizerBase = ours.policy.tokenizer
    expected = gradient(theirs, Policy(theirs.model, tokenizer, "", "", ()), inputs)
    assert (gradient(ours, ours.policy, inputs) - expected).norm() <= 1e-5 * expected.norm()
    assert expected.norm() > 0
