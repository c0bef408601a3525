"""K local GRPO steps of a site, and of the centralized baseline alike.

Everything a step depends on beside weights and optimiser state is derived from (seed, stream, step): which
questions, the sampling, the learning rate. So a site keeps nothing but the optimiser's state between
rounds, and a killed round is simply computed again with the same result.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from trl import GRPOConfig

from common.errors import UserError
from common.grpo.master import MasterWeights
from common.grpo.prefix import causal_model
from common.grpo.proximal import add_pull, anchor
from common.grpo.reference import MovingReference, save_whole
from common.grpo.rewards import letters_of, right_answer
from common.grpo.trainer import PrefixTrainer
from common.models.policy import Policy, trainable_parameters
from common.study import Study

RESIDUAL = "residual/"
"""What the name of a master's residual begins with in the file of the optimiser's state."""


@dataclass(frozen=True)
class LocalResult:
    first_step: int
    steps: int
    seconds: dict[str, float]
    """`generating` and `learning`, wall-clock."""
    rewards: list[float]
    """Mean reward of each step's completions."""
    informative: list[float]
    """Share of each step's groups whose advantages are not all zero."""


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the parts' text; the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class LocalTrainer:
    """Takes GRPO steps on one cohort's questions.

    Args:
        policy: the model in place; `run` trains it from the weights it holds.
        study: decides group size, learning rate, loss.
        questions: question frame (docs/design.md); too long prompts are left out, `left_out` counts them.
        stream: names the cohort; randomness derives from it. The same for one site and for centralized
            training on that one site.
        total_steps: optimiser steps of the whole run, for the learning-rate schedule.
    """

    def __init__(
        self, policy: Policy, study: Study, questions: pl.DataFrame, stream: str, total_steps: int | None = None
    ) -> None:
        self.policy, self.study, self.stream = policy, study, stream
        self.total_steps = total_steps or study.total_steps
        grpo = study.grpo
        texts = [policy.prompt_text(s, p) for s, p in questions.select("system", "prompt").iter_rows()]
        fits = [len(ids) <= grpo.max_prompt_tokens for ids in policy.encode(texts)] if texts else []
        self.left_out = len(fits) - sum(fits)
        answers = zip(texts, letters_of(questions), questions["reference"], fits, strict=True)
        self.rows = [
            {"prompt": text, "letter": letter, "reference": reference}
            for text, letter, reference, fit in answers
            if fit
        ]
        if len(self.rows) < grpo.prompts_per_step:
            raise UserError(
                f"{stream}: {len(self.rows)} training questions are fewer than grpo.prompts_per_step = "
                f"{grpo.prompts_per_step}.",
                "Lower grpo.prompts_per_step or raise questions.per_patient.",
            )
        self.trainer = self._build()
        self._orders: dict[int, np.ndarray] = {}
        # TRL patches the model's forward. The method works on the layers below it, so the patch is taken off
        # again: many trainers on one model would stack theirs.
        vars(causal_model(policy.model)).pop("forward", None)

    def _build(self) -> PrefixTrainer:
        grpo = self.study.grpo
        bf16 = self.study.model.dtype == "bfloat16"
        args = GRPOConfig(
            # TRL makes this folder at once; nothing is ever saved there.
            output_dir=str(Path(tempfile.gettempdir()) / "wardround-trainer"),
            per_device_train_batch_size=grpo.prompts_per_step * grpo.group_size,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_generations=grpo.group_size,
            max_completion_length=grpo.max_completion_tokens,
            temperature=grpo.temperature,
            loss_type=grpo.loss_type,
            scale_rewards=grpo.scale_rewards,
            beta=grpo.beta,
            max_steps=self.total_steps,
            learning_rate=grpo.learning_rate,
            weight_decay=grpo.weight_decay,
            bf16=bf16,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=derive_seed(self.study.seed) % 2**31,
        )
        trainer = PrefixTrainer(
            policy=self.policy,
            route=grpo.prefix_route,
            reward_funcs=right_answer,
            args=args,
            train_dataset=Dataset.from_list(self.rows[:1]),
        )
        if isinstance(self.policy.model, PeftModel) and grpo.beta:
            # TRL takes the adapter it finds as the reference; the reference here is the base model.
            self.policy.model.delete_adapter("ref")
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def batch(self, step: int) -> list[dict[str, str | None]]:
        """The questions of a step: epochs of a seeded shuffle, position derived from the step."""
        size, total = self.study.grpo.prompts_per_step, len(self.rows)
        out = []
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, total)
            out.append(self.rows[self._order(epoch)[index]])
        return out

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            seed = derive_seed(self.study.seed, self.stream, "order", epoch)
            self._orders[epoch] = np.random.default_rng(seed).permutation(len(self.rows))
            self._orders.pop(epoch - 2, None)
        return self._orders[epoch]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Callable[[int], float]:
        """Share of the learning rate at each step of the whole run."""
        grpo = self.study.grpo
        name = "constant_with_warmup" if grpo.schedule == "constant" else grpo.schedule
        warmup = round(grpo.warmup_ratio * self.total_steps)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=self.total_steps)
        assert isinstance(schedule, LambdaLR)
        return schedule.lr_lambdas[0]

    def run(
        self,
        first_step: int,
        steps: int,
        state_dir: Path,
        on_step: Callable[[int, float], None] | None = None,
        state_step: int | None = None,
        proximal: float = 0.0,
    ) -> LocalResult:
        """Train `steps` steps from the weights in the policy.

        Args:
            first_step: how many steps of the run this cohort has taken before.
            state_dir: optimiser state, with what bfloat16 weights lack of their masters, is read from
                `optimizer-<first_step>.safetensors` (absent at step 0) and written to
                `optimizer-<first_step + steps>.safetensors`; the previous one is kept, so that a round can be
                computed again. A moving reference is kept beside it in the same way.
            state_step: the step whose optimiser state is gone on from, where that is not `first_step`: a site that
                missed rounds goes on from its last; 0 starts afresh.
            proximal: FedProx's mu; the pull is toward the weights in the policy at the start.
            on_step: called with (step, mean reward) after each step.
        """
        grpo = self.study.grpo
        model, trainer = self.policy.model, self.trainer
        parameters = trainable_parameters(self.policy)
        before = first_step if state_step is None else state_step
        reference = None
        if grpo.reference_every:
            assert trainer.ref_model is not None  # the study has beta > 0 and trains all parameters
            reference = MovingReference(trainer.ref_model, model, grpo, state_dir)
            reference.start(before)
        kept = load_file(state_dir / f"optimizer-{before}.safetensors") if before else {}
        residual = {n.removeprefix(RESIDUAL): t for n, t in kept.items() if n.startswith(RESIDUAL)}
        masters = MasterWeights(parameters, residual)
        stepped = masters.stepped
        toward = anchor(parameters) if proximal else {}
        optimizer = torch.optim.AdamW(stepped.values(), lr=grpo.learning_rate, weight_decay=grpo.weight_decay)
        if before:
            restore_moments(optimizer, list(stepped), kept)
        share = self._schedule(optimizer)
        trainer.generating_seconds = 0.0
        trainer._step = 0
        rewards, informative = [], []
        start = time.perf_counter()
        model.train()
        for step in range(first_step, first_step + steps):
            torch.manual_seed(derive_seed(self.study.seed, self.stream, "step", step))
            rows = [row for row in self.batch(step) for _ in range(grpo.group_size)]
            optimizer.param_groups[0]["lr"] = grpo.learning_rate * share(step)
            trainer.training_step(model, rows, None)
            masters.take_gradients()
            if proximal:
                add_pull(stepped, toward, proximal)
            torch.nn.utils.clip_grad_norm_(stepped.values(), grpo.max_grad_norm)
            optimizer.step()
            masters.put_back()
            optimizer.zero_grad(set_to_none=True)
            if reference:
                reference.after(step)
            metrics = trainer._metrics["train"]
            rewards.append(metrics["reward"][-1])
            informative.append(1.0 - metrics["frac_reward_zero_std"][-1])
            if on_step:
                on_step(step, rewards[-1])
        model.eval()
        trainer._metrics["train"].clear()
        seconds = time.perf_counter() - start
        end = first_step + steps
        save_optimizer(optimizer, list(stepped), masters.residual(), state_dir / f"optimizer-{end}.safetensors")
        if reference:
            reference.save(end)
        for old in (*state_dir.glob("optimizer-*.safetensors"), *state_dir.glob("reference-*.safetensors")):
            if int(old.stem.split("-")[1]) not in (before, end):
                old.unlink()
        return LocalResult(
            first_step,
            steps,
            {"generating": trainer.generating_seconds, "learning": seconds - trainer.generating_seconds},
            rewards,
            informative,
        )


def save_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], residual: dict[str, torch.Tensor], path: Path
) -> None:
    """Write AdamW's moments and step counts and the masters' residual, atomically."""
    tensors = {f"{RESIDUAL}{name}": value.cpu().contiguous() for name, value in residual.items()}
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    save_whole(tensors, path)


def restore_moments(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
        # AdamW keeps the count of steps on the CPU.
        optimizer.state[parameter] = {"step": tensors[f"step/{name}"], **moments}
