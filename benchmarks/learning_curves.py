"""Learning curves here and with TRL's own trainer: the same study, the same questions at every step, several seeds.

One synthetic hospital of studies/demo.toml, its settings, the built-in model. LocalTrainer takes the steps of one
side; on the other, TRL's GRPOTrainer is run as its documentation runs it, `trainer.train()` with its defaults but for
the study's settings, float32 and the CPU. Completions are drawn from other random numbers, so the curves are equal
up to noise only. With `--frozen` the learning rate is next to nothing, so that the weights stay the base model's and
the two sides' rewards differ by the sampling alone. Each run has a process of its own, and the two sides of a seed
follow each other.

    OMP_NUM_THREADS=1 python -m benchmarks.learning_curves
        [--quick] [--steps N] [--seeds N] [--frozen] [--plot FILE] [--cache FOLDER]
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from platformdirs import user_cache_path
from scipy.stats import t
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer

from benchmarks._apart import apart
from common.grpo.local import LocalTrainer
from common.grpo.rewards import right_answer
from common.model import Builtin
from common.models.builtin import build_builtin
from common.models.policy import load_policy
from common.study import Study, parse_study, read_study
from common.tasks.site_questions import site_questions
from server.frames import registries

DEMO = Path(__file__).parent.parent / "studies" / "demo.toml"
SEEDS, STEPS = 5, 150
QUICK_SEEDS, QUICK_STEPS = 2, 4
FROZEN_RATE = 1e-12
QUICK_MODEL = Builtin(hidden=32, layers=1, warmup_steps=20, warmup_batch=8)
SIDES = {"ours": "this repository", "trl": "TRL"}
WINDOWS = 6
"""A point of the drawn curve is the mean of one part in so many of the steps."""


@dataclass
class Curve:
    """What is known after each step; seconds since the first one began."""

    began: float = field(default_factory=time.perf_counter)
    began_cpu: float = field(default_factory=time.process_time)
    rewards: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, reward: float) -> None:
        self.rewards.append(reward)
        self.wall.append(time.perf_counter() - self.began)
        self.cpu.append(time.process_time() - self.began_cpu)

    @property
    def last_quarter(self) -> float:
        return float(np.mean(self.rewards[-(len(self.rewards) // 4) :]))


@dataclass(frozen=True)
class Difference:
    """A mean over seeds of ours - TRL's with its 95 % t interval."""

    mean: float
    low: float
    high: float


class Follow(TrainerCallback):
    """TRL's reward of each step into a curve."""

    def __init__(self) -> None:
        self.curve = Curve()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.curve = Curve()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "reward" in logs:
            self.curve.add(logs["reward"])


def chosen_study(quick: bool, steps: int, frozen: bool = False) -> Study:
    """The demo at its first site, without rounds."""
    study = read_study(DEMO)
    values = study.model_dump(mode="json", exclude_none=True)
    values["sites"] |= {"train": list(study.sites.train[:1]), "unseen": []}
    values["rounds"] |= {"rounds": 1, "local_steps": steps}
    if frozen:
        values["grpo"] |= {"learning_rate": FROZEN_RATE}
    if quick:
        values["model"]["builtin"] = QUICK_MODEL.model_dump(mode="json")
    return parse_study(values, str(DEMO))


def make_model(study: Study, cache: Path) -> Path:
    return build_builtin(study, registries(study, study.sites.public)[0], cache)


def their_trainer(study: Study, model: Path, folder: Path, rows: list[dict[str, str | None]]) -> GRPOTrainer:
    """On rows in the order in which they are to be asked."""
    grpo = study.grpo
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=grpo.prompts_per_step * grpo.group_size,
        num_generations=grpo.group_size,
        max_completion_length=grpo.max_completion_tokens,
        temperature=grpo.temperature,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        beta=grpo.beta,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type=grpo.schedule,
        weight_decay=grpo.weight_decay,
        max_grad_norm=grpo.max_grad_norm,
        max_steps=study.total_steps,
        shuffle_dataset=False,
        seed=study.seed,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(model=str(model), reward_funcs=right_answer, args=args, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(PrinterCallback)
    return trainer


def learn(side: str, study: Study, model: Path, folder: Path) -> Curve:
    """Train from the base model; runs in a process of its own."""
    site = registries(study, study.sites.train)[0]
    ours = LocalTrainer(load_policy(study, model), study, site_questions(site, study).train, site.site)
    if side == "ours":
        curve = Curve()
        ours.run(0, study.total_steps, folder, on_step=lambda _, reward: curve.add(reward))
        return curve
    rows = [row for step in range(study.total_steps) for row in ours.batch(step)]
    trainer = their_trainer(study, model, folder, rows)
    follow = Follow()
    trainer.add_callback(follow)
    trainer.train()
    return follow.curve


def difference(ours: list[float], theirs: list[float]) -> Difference:
    """Over seeds, each side's value of a seed paired with the other's."""
    apart_by = np.subtract(ours, theirs)
    reach = t.ppf(0.975, len(apart_by) - 1) * apart_by.std(ddof=1) / np.sqrt(len(apart_by))
    return Difference(float(apart_by.mean()), float(apart_by.mean() - reach), float(apart_by.mean() + reach))


def plot(curves: dict[str, list[Curve]], file: Path) -> None:
    """Reward over steps and over wall time: mean over seeds and their range, running over a sixth of the steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    steps = len(curves["ours"][0].rewards)
    window = max(1, steps // WINDOWS)
    for side, label in SIDES.items():
        smooth = np.array([np.convolve(curve.rewards, np.ones(window) / window, "valid") for curve in curves[side]])
        ends = np.mean([curve.wall for curve in curves[side]], axis=0)[window - 1 :]
        for axis, places in zip(axes, (np.arange(window, steps + 1), ends), strict=True):
            (line,) = axis.plot(places, smooth.mean(axis=0), label=label)
            axis.fill_between(places, smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.2)
    axes[0].set(xlabel="step", ylabel="reward")
    axes[1].set(xlabel="wall time (s)", xlim=(0, None))
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, a few steps, a smaller model")
    parser.add_argument("--steps", type=int, help=f"steps of each run; {STEPS}, or {QUICK_STEPS} if quick")
    parser.add_argument("--seeds", type=int, help=f"runs of each side; {SEEDS}, or {QUICK_SEEDS} if quick")
    parser.add_argument("--frozen", action="store_true", help="weights stay the base model's: compares the sampling")
    parser.add_argument("--plot", type=Path, help="also draw the curves into this file")
    parser.add_argument(
        "--cache",
        type=Path,
        default=user_cache_path("wardround") / "models",
        help="where the built-in model lies, or is put once built; as of `wardround simulate`",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    # What libraries say about themselves would stand between the table's lines.
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "DS_ACCELERATOR": "cpu"}
    study = chosen_study(given.quick, given.steps or (QUICK_STEPS if given.quick else STEPS), given.frozen)
    curves: dict[str, list[Curve]] = {side: [] for side in SIDES}
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    model = apart(make_model, study, given.cache)
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{study.total_steps} steps, 1 thread; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{'seed':6}{'side':8}{'first reward':>14}{'last quarter':>14}{'wall':>12}{'CPU':>12}")
        for seed in range(1, seeds + 1):
            for side in SIDES:
                curve = apart(learn, side, study.with_seed(seed), model, Path(temporary) / f"{side}-{seed}")
                curves[side].append(curve)
                rewards = f"{curve.rewards[0]:>14.3f}{curve.last_quarter:>14.3f}"
                print(f"{seed:<6}{side:8}{rewards}{curve.wall[-1]:>10.1f} s{curve.cpu[-1]:>10.1f} s", flush=True)
    if given.plot:
        plot(curves, given.plot)
    ours, theirs = curves["ours"], curves["trl"]
    end = difference([c.last_quarter for c in ours], [c.last_quarter for c in theirs])
    whole = difference([float(np.mean(c.rewards)) for c in ours], [float(np.mean(c.rewards)) for c in theirs])
    values = {
        "wall_ratio": sum(c.wall[-1] for c in theirs) / sum(c.wall[-1] for c in ours),
        "cpu_ratio": sum(c.cpu[-1] for c in theirs) / sum(c.cpu[-1] for c in ours),
        "reward_difference": end.mean,
        "reward_difference_low": end.low,
        "reward_difference_high": end.high,
        "reward_difference_all_steps": whole.mean,
        "reward_difference_all_steps_low": whole.low,
        "reward_difference_all_steps_high": whole.high,
    }
    print(json.dumps({name: round(value, 4) for name, value in values.items()}))


if __name__ == "__main__":
    main()
