"""The trainer on shared prefixes takes the steps that TRL's own trainer would take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOTrainer

from common.grpo.local import LocalTrainer
from common.grpo.rewards import right_letter
from common.models.policy import Policy, load_policy, trainable_parameters
from common.study import Study


def vary(policy: Policy) -> Policy:
    """Move the weights off the base model's, so that the KL to it is not zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def rolled_out(local: LocalTrainer) -> dict[str, Any]:
    """A step's real completions, with advantages that are nowhere zero."""
    local.policy.model.train()
    torch.manual_seed(2)
    rows = [row for row in local.batch(0) for _ in range(local.study.grpo.group_size)]
    inputs = local.trainer._generate_and_score_completions(rows)
    inputs["advantages"] = torch.randn(len(rows), generator=torch.Generator().manual_seed(3))
    return inputs


def loss_and_gradient(trainer: GRPOTrainer, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    model.train()
    loss = trainer.compute_loss(model, inputs)
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo"])
def test_loss_and_gradients_are_those_of_trl(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, loss_type: str, beta: float
) -> None:
    study = make_study(loss_type=loss_type, beta=beta, temperature=1.3)
    local = LocalTrainer(vary(load_policy(study, tiny_model)), study, questions, "somewhere")
    plain_policy = vary(load_policy(study, tiny_model))
    plain = GRPOTrainer(
        model=plain_policy.model,
        reward_funcs=right_letter,
        args=local.trainer.args,
        train_dataset=Dataset.from_list(local.rows[:1]),
        processing_class=plain_policy.tokenizer,
    )
    plain.current_gradient_accumulation_steps = 1
    inputs = rolled_out(local)
    lengths = inputs["completion_mask"].sum(-1)
    assert lengths.min() < lengths.max(), "loss types differ only where completions differ in length"
    ours = loss_and_gradient(local.trainer, local.policy.model, inputs)
    if beta:
        # TRL's own reference on the same rows, instead of the one that the prefix trainer computed.
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        with torch.no_grad():
            reference, _, _ = plain._get_per_token_logps_and_entropies(
                plain.ref_model, ids, mask, inputs["completion_ids"].shape[1]
            )
        real = inputs["completion_mask"].bool()
        torch.testing.assert_close(inputs["ref_per_token_logps"][real], reference[real], rtol=1e-4, atol=1e-5)
        inputs = {**inputs, "ref_per_token_logps": reference}
    theirs = loss_and_gradient(plain, plain_policy.model, inputs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert theirs[1].norm() > 1e-3
    assert (ours[1] - theirs[1]).norm() <= 2e-5 * theirs[1].norm()


def test_cispo_is_dapo_on_policy(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame
) -> None:
    """The ratio is 1, so its bound must not cut it; both are means over the step's tokens."""
    gradients = []
    for loss_type in ("cispo", "dapo"):
        study = make_study(loss_type=loss_type)
        local = LocalTrainer(load_policy(study, tiny_model), study, questions, "somewhere")
        gradients.append(loss_and_gradient(local.trainer, local.policy.model, rolled_out(local))[1])
    assert gradients[1].norm() > 1e-3
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_reference_is_the_base_model(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, trainable: str
) -> None:
    study = make_study(trainable, beta=0.1)
    local = LocalTrainer(vary(load_policy(study, tiny_model)), study, questions, "somewhere")
    inputs = rolled_out(local)
    base = load_policy(make_study(), tiny_model).model
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        logps = base(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].log_softmax(-1)
    expected = logps.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    real = inputs["completion_mask"].bool()
    torch.testing.assert_close(inputs["ref_per_token_logps"][real], expected[real], rtol=1e-4, atol=1e-5)


def test_rewards_become_advantages_within_a_group(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame
) -> None:
    study = make_study()
    local = LocalTrainer(load_policy(study, tiny_model), study, questions, "somewhere")
    local.policy.model.train()
    torch.manual_seed(2)
    rows = [row for row in local.batch(0) for _ in range(study.grpo.group_size)]
    inputs = local.trainer._generate_and_score_completions(rows)
    texts = local.policy.tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    rewards = torch.tensor(right_letter(texts, [row["letter"] for row in rows])).view(-1, study.grpo.group_size)
    assert 0 < rewards.mean() < 1
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(inputs["advantages"].view_as(rewards), expected)
