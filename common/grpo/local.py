"""K local GRPO steps of a site, and of the centralized baseline alike.

Everything a step depends on beside weights and optimiser state is derived from (seed, stream, step): which
questions, the sampling, the learning rate. So a site keeps nothing but the optimiser's state between
rounds, and a killed round is simply computed again with the same result.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from trl import GRPOConfig

from common.errors import UserError
from common.grpo.dynamic_sampling import replace_agreeing
from common.grpo.generation import Completion
from common.grpo.hacking import Signs, signs
from common.grpo.prefix import causal_model
from common.grpo.ranks import even_parts, everyones, my_groups, my_share, rank, rows_per_rank, world
from common.grpo.reference import MovingReference, save_whole
from common.grpo.rewards import letters_of, reward_terms
from common.grpo.stepping import OwnSteps
from common.grpo.trainer import PrefixTrainer
from common.grpo.vllm import Server
from common.grpo.zero import ZeroSteps
from common.models.adapters import train_factors_of_round
from common.models.policy import Policy, trainable_parameters, trainable_state
from common.study import Study


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
    signs: list[Signs]
    """Of each step, signs of reward hacking."""
    mismatch: list[float]
    """Of each step, mean |difference| of the learner's and vLLM's log-probabilities of the tokens that vLLM drew; empty
    where the policy samples itself."""


@dataclass(frozen=True)
class Asked:
    """What came of one step's questions."""

    letters: list[str | None]
    """Right letter of each completion's question."""
    completions: list[list[int]]
    """Tokens, one list a completion."""
    reward: float
    """Mean over the completions."""
    informative: float
    """Share of groups whose advantages are not all zero."""
    mismatch: float | None = None
    """See `LocalResult`."""


def by_step(result: LocalResult) -> dict[str, list[Any]]:
    """What is logged of each step, where the questions are: reward, informative groups, signs of reward hacking, and
    how far vLLM's probabilities are from the learner's."""
    return {
        "reward": result.rewards,
        "informative": result.informative,
        "signs": [asdict(told) for told in result.signs],
        "mismatch": result.mismatch,
    }


def digest(*parts: object) -> str:
    """SHA-256 of the parts' text; the same on every machine."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the parts' text."""
    return int(digest(*parts)[:16], 16) >> 1


class LocalTrainer:
    """Takes GRPO steps on one cohort's questions.

    Args:
        policy: the model in place; `run` trains it from the weights it holds.
        study: decides group size, learning rate, loss.
        questions: question frame (docs/design.md); too long prompts are left out, `left_out` counts them.
        stream: names the cohort; randomness derives from it. The same for one site and for centralized
            training on that one site.
        total_steps: optimiser steps of the whole run, for the learning-rate schedule.
        server: samples the completions; the policy in place does unless given.
    """

    def __init__(
        self,
        policy: Policy,
        study: Study,
        questions: pl.DataFrame,
        stream: str,
        total_steps: int | None = None,
        server: Server | None = None,
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
        self.asked = questions.filter(pl.Series(fits, dtype=pl.Boolean))
        """The questions of the rows."""
        self.check_enough()
        self.rewards = reward_terms(grpo.rewards, grpo.max_completion_tokens)
        self.share = rows_per_rank(grpo.prompts_per_step, grpo.group_size)
        """Rows of a step that this process takes."""
        self.parts = even_parts(self.share, (grpo.groups_at_once or grpo.prompts_per_step) * grpo.group_size)
        self.trainer = self._build(server)
        self._orders: dict[int, np.ndarray] = {}
        # TRL patches the model's forward. The method works on the layers below it, so the patch is taken off
        # again: many trainers on one model would stack theirs.
        vars(causal_model(policy.model)).pop("forward", None)

    def check_enough(self) -> None:
        """Raises: UserError: there are fewer questions than a step asks."""
        if len(self.rows) < self.study.grpo.prompts_per_step:
            raise UserError(
                f"{self.stream}: {len(self.rows)} training questions are fewer than grpo.prompts_per_step = "
                f"{self.study.grpo.prompts_per_step}.",
                "Lower grpo.prompts_per_step or raise questions.per_patient.",
            )

    def _build(self, server: Server | None) -> PrefixTrainer:
        grpo = self.study.grpo
        bf16 = self.study.model.dtype == "bfloat16"
        args = GRPOConfig(
            # TRL makes this folder at once; nothing is ever saved there.
            output_dir=str(Path(tempfile.gettempdir()) / "wardround-trainer"),
            per_device_train_batch_size=self.share // self.parts,
            gradient_accumulation_steps=self.parts,
            steps_per_generation=self.parts,
            num_generations=grpo.group_size,
            max_completion_length=grpo.max_completion_tokens,
            temperature=grpo.temperature,
            # With one batch a step they are the same mean, and TRL takes dapo's over all processes.
            loss_type="dapo" if grpo.loss_type == "bnpo" and world() > 1 else grpo.loss_type,
            # Of cispo it is the weight's upper bound itself, so TRL's 0.2 would cut the ratio of 1; TRL advises 5.
            epsilon_high=5.0 if grpo.loss_type == "cispo" else None,
            scale_rewards=grpo.scale_rewards,
            reward_weights=[weight for _, weight in self.rewards],
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
            accelerator_config={"use_configured_state": distributed.is_initialized()},
            seed=derive_seed(self.study.seed) % 2**31,
        )
        trainer = PrefixTrainer(
            policy=self.policy,
            route=grpo.prefix_route,
            server=server,
            reward_funcs=[term for term, _ in self.rewards],
            args=args,
            train_dataset=Dataset.from_list(self.rows[:1]),
        )
        if isinstance(self.policy.model, PeftModel) and grpo.beta:
            # TRL takes the adapter it finds as the reference; the reference here is the base model.
            self.policy.model.delete_adapter("ref")
        trainer.current_gradient_accumulation_steps = self.parts
        return trainer

    def batch(self, step: int) -> list[dict[str, str | None]]:
        """The questions of a step: epochs of a seeded shuffle, position derived from the step."""
        return [self.rows[number] for number in self._numbers(step)]

    def _numbers(self, step: int) -> list[int]:
        size, total = self.study.grpo.prompts_per_step, len(self.rows)
        places = (divmod(position, total) for position in range(step * size, (step + 1) * size))
        return [int(self._order(epoch)[index]) for epoch, index in places]

    def informative_batch(self, step: int) -> list[dict[str, str | None]]:
        """`batch`, with groups that agree replaced; their completions are left with the trainer."""
        seed, stream, group = self.study.seed, self.stream, self.study.grpo.group_size

        def draw(questions: Sequence[int], number: int) -> list[list[Completion]]:
            torch.manual_seed(derive_seed(seed, stream, "sample", step, number))
            mine = my_groups(len(questions), group)
            prompts = [str(self.rows[questions[place]]["prompt"]) for place in mine]
            rows = everyones(self.trainer.sample_groups(prompts, list(mine.values())))
            return [rows[start : start + group] for start in range(0, len(rows), group)]

        chosen, groups = replace_agreeing(
            self._numbers(step),
            len(self.rows),
            self.study.grpo.dynamic_sampling,
            lambda number: derive_seed(seed, stream, "replace", step, number),
            draw,
            lambda question, rows: len(set(self.reward(self.rows[question], [row.ids for row in rows]))) == 1,
        )
        self.trainer.sampled_before = my_share([row for rows in groups for row in rows])
        return [self.rows[question] for question in chosen]

    def reward(self, row: dict[str, str | None], completion_ids: list[list[int]]) -> list[float]:
        """The weighted reward of each completion of one question."""
        columns = {name: [row[name]] * len(completion_ids) for name in ("letter", "reference")}
        texts = self.texts(completion_ids)
        parts = [
            [weight * value for value in term(completions=texts, completion_ids=completion_ids, **columns)]
            for term, weight in self.rewards
        ]
        return [sum(values) for values in zip(*parts, strict=True)]

    def texts(self, completion_ids: list[list[int]]) -> list[str]:
        return self.policy.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            seed = derive_seed(self.study.seed, self.stream, "order", epoch)
            self._orders[epoch] = np.random.default_rng(seed).permutation(len(self.rows))
            self._orders.pop(epoch - 2, None)
        return self._orders[epoch]

    def _schedule(self) -> Callable[[int], float]:
        """Share of the learning rate at each step of the whole run."""
        grpo = self.study.grpo
        # Only the curve is wanted, but it is made for an optimiser.
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        name = "constant_with_warmup" if grpo.schedule == "constant" else grpo.schedule
        warmup = round(grpo.warmup_ratio * self.total_steps)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=self.total_steps)
        assert isinstance(schedule, LambdaLR)
        return schedule.lr_lambdas[0]

    def _stepping(self, kept: dict[str, Tensor], proximal: float) -> OwnSteps | ZeroSteps:
        """Our own optimiser, or DeepSpeed's where the processes were started for it."""
        parameters, grpo = trainable_parameters(self.policy), self.study.grpo
        if not self.trainer.is_deepspeed_enabled:
            return OwnSteps(parameters, grpo, kept, proximal)
        if set(parameters) != set(self.policy.changing):
            raise UserError(
                f"Under DeepSpeed a round trains all that a run changes, but model.lora.average is "
                f"{self.study.model.lora.average!r}.",
                "Choose 'frozen-a', or remove {zero2} or {zero3} from the launcher.",
            )
        accelerator, scorer = self.trainer.accelerator, self.trainer.scorer()
        self.trainer.zero = ZeroSteps(accelerator, scorer, parameters, grpo, kept, proximal)
        return self.trainer.zero

    def trained(self) -> dict[str, Tensor]:
        """The trained tensors after `run`, whole, on the first process's CPU. All processes call it together."""
        zero = self.trainer.zero
        return trainable_state(self.policy) if zero is None else zero.trained()

    def gradients(self, step: int) -> Asked:
        """Ask a step's questions and leave their gradients on the parameters."""
        grpo, trainer = self.study.grpo, self.trainer
        trainer.send_weights()
        torch.manual_seed(derive_seed(self.study.seed, self.stream, "step", step))
        questions = self.informative_batch(step) if grpo.dynamic_sampling else self.batch(step)
        rows = [row for row in questions for _ in range(grpo.group_size)]
        for part in range(self.parts):
            trainer.accelerator.sync_gradients = part == self.parts - 1
            trainer.training_step(self.policy.model, my_share(rows), None)
        metrics = trainer._metrics["train"]
        letters = [row["letter"] for row in rows]
        reward, agree = metrics["reward"][-1], metrics["frac_reward_zero_std"][-1]
        mismatch = None if trainer.server is None else metrics["sampling/sampling_logp_difference/mean"][-1]
        return Asked(letters, everyones(trainer.completion_ids), reward, 1.0 - agree, mismatch)

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
        if self.study.model.trainable == "lora":
            train_factors_of_round(model, self.study.model, first_step // self.study.rounds.local_steps + 1)
        before = first_step if state_step is None else state_step
        reference = None
        if grpo.reference_every:
            assert trainer.ref_model is not None  # the study has beta > 0 and trains all parameters
            reference = MovingReference(trainer.ref_model, model, grpo, state_dir, trainer.accelerator)
            reference.start(before)
        kept = load_file(state_dir / f"optimizer-{before}.safetensors") if before else {}
        stepping = self._stepping(kept, proximal)
        share = self._schedule()
        trainer.generating_seconds = 0.0
        trainer._step = 0
        rewards, informative, told, mismatch = [], [], [], []
        start = time.perf_counter()
        model.train()
        for step in range(first_step, first_step + steps):
            stepping.set_rate(grpo.learning_rate * share(step))
            asked = self.gradients(step)
            stepping.step()
            if reference:
                reference.after(step)
            rewards.append(asked.reward)
            informative.append(asked.informative)
            mismatch += [asked.mismatch] if asked.mismatch is not None else []
            told.append(signs(self.texts(asked.completions), asked.completions, asked.letters))
            if on_step:
                on_step(step, rewards[-1])
        model.eval()
        trainer._metrics["train"].clear()
        seconds = time.perf_counter() - start
        end = first_step + steps
        # With what is kept of factors that other rounds train.
        tensors = kept | stepping.state()
        if reference:
            reference.save(end)
        if rank() == 0:
            save_whole(tensors, state_dir / f"optimizer-{end}.safetensors")
            for old in (*state_dir.glob("optimizer-*.safetensors"), *state_dir.glob("reference-*.safetensors")):
                if int(old.stem.split("-")[1]) not in (before, end):
                    old.unlink()
        return LocalResult(
            first_step,
            steps,
            {"generating": trainer.generating_seconds, "learning": seconds - trainer.generating_seconds},
            rewards,
            informative,
            told,
            mismatch,
        )
