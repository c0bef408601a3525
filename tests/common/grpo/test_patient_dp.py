"""Private steps: their sum against a loop over patients written out by hand, their sensitivity and their noise."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.grpo.generation import Completion
from common.grpo.local import derive_seed
from common.grpo.patient_dp import PatientTrainer, add_clipped
from common.grpo.rewards import right_answer
from common.models.policy import load_policy, trainable_parameters, trainable_state
from common.privacy import Privacy
from common.study import Study

PRIVACY = Privacy(clip=0.05, noise_multiplier=1.0, sample_rate=0.5, patients_per_step=5, questions_per_patient=2)
SECRET = b"s" * 32


class SeededByPrompt(PatientTrainer):
    """Real sampling, but what a question is answered does not depend on which others are asked beside it."""

    def begin(self, secret: bytes, occasion: str) -> None:
        super().begin(secret, occasion)
        together = self.trainer.sample_groups

        def one_by_one(prompts: list[str], counts: list[int]) -> list[Completion]:
            rows = []
            for prompt, count in zip(prompts, counts, strict=True):
                torch.manual_seed(derive_seed("completions", prompt))
                rows.extend(together([prompt], [count]))
            return rows

        vars(self.trainer)["sample_groups"] = one_by_one

    def noise(self, step: int, name: str, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


Make = Callable[..., PatientTrainer]


@pytest.fixture
def make(make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame) -> Make:
    def made(
        trainable: str = "all",
        kind: type[PatientTrainer] = SeededByPrompt,
        without: str | None = None,
        privacy: Privacy = PRIVACY,
        dtype: torch.dtype = torch.float32,
        **grpo: Any,
    ) -> PatientTrainer:
        study = make_study(trainable, **grpo).model_copy(update={"privacy": privacy})
        policy = load_policy(study, tiny_model)
        policy.model.to(dtype)
        asked = questions if without is None else questions.filter(pl.col("patient") != without)
        trainer = kind(policy, study, asked, "somewhere")
        trainer.begin(SECRET, "occasion")
        return trainer

    return made


def left(trainer: PatientTrainer) -> dict[str, Tensor]:
    """The gradients on the parameters, float64."""
    return {n: p.grad.double() for n, p in trainable_parameters(trainer.policy).items() if p.grad is not None}


def length(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


def by_hand(trainer: PatientTrainer, step: int, loss_type: str) -> dict[str, Tensor]:
    """The mechanism without noise, patient by patient, one completion after the other; `trainer` is float64."""
    grpo, policy = trainer.study.grpo, trainer.policy
    parameters = trainable_parameters(policy)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for numbers in trainer.drawn(step).values():
        loss = torch.zeros((), dtype=torch.float64)
        for number in numbers:
            row = trainer.rows[number]
            prompt = str(row["prompt"])
            sampled = trainer.trainer.sample_groups([prompt], [grpo.group_size])
            group = [completion.ids for completion in sampled]
            rewards = torch.tensor(right_answer(
                completions=trainer.texts(group), completion_ids=group, letter=[row["letter"]] * len(group),
                reference=[row["reference"]] * len(group),
            ), dtype=torch.float64)  # fmt: skip
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            ids = policy.encode([prompt])[0]
            for tokens, advantage in zip(group, advantages, strict=True):
                logits = policy.model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1] / grpo.temperature
                logps = logits.log_softmax(-1)[range(len(tokens)), tokens]
                ratio = torch.exp(logps - logps.detach())
                long = len(tokens) if loss_type == "grpo" else grpo.max_completion_tokens
                loss = loss - (ratio * advantage).sum() / long / len(group)
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        share = {name: gradient / PRIVACY.questions_per_patient for name, gradient in gradients.items()}
        scale = min(1.0, PRIVACY.clip / max(length(share), 1e-30))
        for name, gradient in share.items():
            total[name] += scale * gradient
    return {name: value / PRIVACY.patients_per_step for name, value in total.items()}


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_the_step_is_the_loop_over_patients(make: Make, trainable: str, loss_type: str) -> None:
    trainer, exact = (make(trainable, loss_type=loss_type, dtype=dtype) for dtype in (torch.float32, torch.float64))
    step = 1
    assert len(trainer.drawn(step)) >= 2
    expected = by_hand(exact, step, loss_type)
    trainer.gradients(step)
    found = left(trainer)
    apart = length({name: found[name] - expected[name] for name in found})
    assert found.keys() == expected.keys() and length(expected) > 0
    assert apart / length(expected) < 2e-5


def test_at_least_one_patient_is_clipped_and_one_is_not(make: Make) -> None:
    """Or the comparison above would not show that each is clipped on its own."""
    lengths = []
    for patient in make().drawn(1):
        trainer = make(privacy=PRIVACY.model_copy(update={"clip": 1e6}))
        trainer.of_patient = {patient: trainer.of_patient[patient]}
        trainer.gradients(1)
        lengths.append(length(left(trainer)) * PRIVACY.patients_per_step)
    assert any(value > PRIVACY.clip for value in lengths) and any(value <= PRIVACY.clip for value in lengths), lengths


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_one_patient_more_or_less_moves_the_sum_by_the_clip_at_most(make: Make, trainable: str) -> None:
    whole = make(trainable)
    whole.gradients(1)  # its gradients must not count in the next step
    whole.gradients(0)
    before, moved = left(whole), []
    for patient in list(whole.drawn(0))[:4]:
        other = make(trainable, without=patient)
        assert other.drawn(0).keys() == whole.drawn(0).keys() - {patient}
        other.gradients(0)
        after = left(other)
        apart = length({name: before[name] - after[name] for name in before})
        moved.append(apart * PRIVACY.patients_per_step)
    assert max(moved) > 0.0
    assert max(moved) <= PRIVACY.clip * (1 + 1e-4), max(moved)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=5),
    st.floats(1e-3, 1e3),
    st.sampled_from([1.0, 0.5]),
)
def test_whatever_the_gradient_what_is_added_is_no_longer_than_the_clip(
    values: list[float], bound: float, share: float
) -> None:
    parameter = nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    total = {"w": torch.zeros(len(values))}
    add_clipped(total, {"w": parameter}, share, bound)
    assert length({"w": total["w"].double()}) <= bound * (1 + 1e-5)
    assert parameter.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_adds_nothing(bad: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([bad, 1.0])
    total = {"w": torch.ones(2)}
    add_clipped(total, {"w": parameter}, 1.0, 1.0)
    assert torch.equal(total["w"], torch.ones(2))


def test_the_noise_has_the_stated_spread_and_an_empty_draw_is_noise_alone(make: Make) -> None:
    nobody = PRIVACY.model_copy(update={"sample_rate": 1e-9})
    trainer = make(kind=PatientTrainer, privacy=nobody)
    asked = trainer.gradients(0)
    assert (asked.completions, asked.reward) == ([], 0.0) and trainer.drawn(0) == {}
    values = torch.cat([gradient.reshape(-1) for gradient in left(trainer).values()])
    sigma = PRIVACY.noise_multiplier * PRIVACY.clip / PRIVACY.patients_per_step
    assert abs(float(values.std()) / sigma - 1) < 4 / math.sqrt(2 * len(values))
    assert abs(float(values.mean())) < 4 * sigma / math.sqrt(len(values))


def test_the_same_occasion_is_the_same_release_and_another_one_has_other_noise(make: Make) -> None:
    def gradient(occasion: str, secret: bytes = SECRET) -> dict[str, Tensor]:
        trainer = make(kind=PatientTrainer)
        trainer.begin(secret, occasion)
        trainer.gradients(0)
        return left(trainer)

    first = gradient("one")
    assert all(torch.equal(first[n], again) for n, again in gradient("one").items())
    for other in (gradient("two"), gradient("one", b"t" * 32)):
        assert not any(torch.equal(first[name], value) for name, value in other.items())


def test_steps_go_on_exactly_in_a_new_trainer(make: Make, tmp_path: Path) -> None:
    through = make(kind=PatientTrainer)
    through.run(0, 4, tmp_path / "through")
    half = make(kind=PatientTrainer)
    half.run(0, 2, tmp_path / "half")
    rest = make(kind=PatientTrainer)
    rest.policy.model.load_state_dict(half.policy.model.state_dict())
    rest.run(2, 2, tmp_path / "half")
    one, two = trainable_state(through.policy), trainable_state(rest.policy)
    assert all(torch.equal(one[name], two[name]) for name in one)
