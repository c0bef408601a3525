"""Differential privacy for each patient: local GRPO steps whose gradients hide whether a patient was there.

    g = (sum over the drawn patients p of  g_p min(1, C / |g_p|)  +  N(0, (sigma C)^2)) / B
    g_p = sum over the groups of p's questions in this step of the group's gradient, / k

(Abadi et al. 2016, arXiv 1607.00133, with the patient as the unit: all questions of a patient in a step, and all
completions of each, are one.) C, sigma, B and k are the study's (common/privacy.py), whatever the registry holds. Each
patient is drawn on its own, with the probability q. So a registry with one patient more gives a sum that differs by C
at most in L2 norm; the rest of the step, and of the update, is computed from g.

That a step is a sum over patients rests on group-wise advantages and on losses with fixed denominators;
`common.study` refuses what would mix patients. Patients' completions are drawn together for speed: each depends on its
own prompt and on random numbers that are independent of the other patients.
"""

import math

import torch
from torch import Tensor, nn

from common.grpo.local import Asked, LocalTrainer
from common.grpo.noise import derived_key, normals, uniforms
from common.models.policy import trainable_parameters


class PatientTrainer(LocalTrainer):
    """LocalTrainer with private steps. `begin` before each `run`."""

    def check_enough(self) -> None:
        """Any number of questions is enough: to refuse would tell of the patients."""

    def begin(self, secret: bytes, occasion: str) -> None:
        """Set where this run's draws and noise come from.

        Args:
            secret: the site's (common/grpo/noise.py).
            occasion: everything but the step that the gradients depend on: study, run, round and the model's hash. Two
                computations that could differ must not have the same: the difference of what they send would show
                the gradients without their noise.
        """
        self.secret, self.occasion = secret, occasion
        self.of_patient: dict[str, list[int]] = {}
        for number, patient in enumerate(self.asked["patient"]):
            self.of_patient.setdefault(patient, []).append(number)

    def key(self, step: int, purpose: str, about: str = "") -> bytes:
        return derived_key(self.secret, self.occasion, step, purpose, about)

    def drawn(self, step: int) -> dict[str, list[int]]:
        """Patient -> the questions that it is asked in this step. Nothing of a patient depends on another."""
        assert self.study.privacy is not None
        chosen: dict[str, list[int]] = {}
        for patient, numbers in sorted(self.of_patient.items()):
            inside, *order = uniforms(self.key(step, "draw", patient), 1 + len(numbers))
            if inside < self.study.privacy.sample_rate:
                shuffled = [number for _, number in sorted(zip(order, numbers, strict=True))]
                chosen[patient] = shuffled[: self.study.privacy.questions_per_patient]
        return chosen

    def gradients(self, step: int) -> Asked:
        """Leave the noised mean of the drawn patients' clipped gradients on the parameters."""
        privacy, grpo, trainer = self.study.privacy, self.study.grpo, self.trainer
        assert privacy is not None
        parameters = trainable_parameters(self.policy)
        chosen = self.drawn(step)
        torch.manual_seed(int.from_bytes(self.key(step, "completions")[:8], "big") >> 1)
        asked = [self.rows[number] for numbers in chosen.values() for number in numbers]
        prompts = [str(row["prompt"]) for row in asked]
        completions = trainer.sample_groups(prompts, [grpo.group_size] * len(asked)) if asked else []
        self.policy.model.zero_grad()  # what lay there before would count as the first patient's
        total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
        begin = 0
        for numbers in chosen.values():
            end = begin + len(numbers) * grpo.group_size
            trainer.sampled_before = completions[begin:end]
            rows = [self.rows[number] for number in numbers for _ in range(grpo.group_size)]
            trainer.training_step(self.policy.model, rows, None)
            # TRL's loss is a mean over the groups.
            add_clipped(total, parameters, len(numbers) / privacy.questions_per_patient, privacy.clip)
            begin = end
        for name, parameter in parameters.items():
            noise = self.noise(step, name, total[name]) * (privacy.noise_multiplier * privacy.clip)
            parameter.grad = ((total[name] + noise) / privacy.patients_per_step).to(parameter.dtype)
        metrics = trainer._metrics["train"]
        each = len(chosen)
        rewards, agree = metrics["reward"][-each:], metrics["frac_reward_zero_std"][-each:]
        letters = [row["letter"] for row in asked for _ in range(grpo.group_size)]
        reward, informative = mean(rewards), 1.0 - mean(agree) if each else 0.0
        metrics.clear()
        return Asked(letters, [completion.ids for completion in completions], reward, informative)

    def noise(self, step: int, name: str, like: Tensor) -> Tensor:
        """Standard normal, of the shape and type of `like`."""
        numbers = torch.from_numpy(normals(self.key(step, "noise", name), like.numel()))
        return numbers.reshape(like.shape).to(like)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def add_clipped(total: dict[str, Tensor], parameters: dict[str, nn.Parameter], share: float, bound: float) -> None:
    """Add one patient's gradient, `share` times what lies on the parameters, scaled to `bound` in L2 norm at most.

    The gradients are taken off the parameters. The norm is over all of them together, in float64.
    """
    gradients = {n: parameter.grad for n, parameter in parameters.items() if parameter.grad is not None}
    norm = share * math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
    # A gradient that is not finite is the patient's own matter too: to stop for it would tell of it.
    factor = share * min(1.0, bound / norm) if 0.0 < norm < math.inf else None
    for name, gradient in gradients.items():
        if factor is not None:
            total[name].add_(gradient, alpha=factor)
        parameters[name].grad = None
