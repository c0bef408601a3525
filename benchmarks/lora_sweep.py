"""Which learning rate LoRA wants: a sweep over rates for all parameters and for LoRA of three ranks.

The first site of studies/demo.toml, its settings and the built-in model as in `benchmarks.learning_curves`. LoRA as the
study's defaults have it but for the rank: all linear layers, alpha 32, A frozen. All runs of a seed start at the same
weights and ask the same questions.

    OMP_NUM_THREADS=1 python -m benchmarks.lora_sweep [--quick] [--ranks N ...] [--plot FILE] [--cache FOLDER]
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from platformdirs import user_cache_path
from transformers.utils.logging import disable_progress_bar

from benchmarks.learning_curves import chosen_study, make_model
from common.grpo.local import LocalTrainer
from common.models.policy import load_policy
from common.study import Study, parse_study
from common.tasks.site_questions import site_questions
from server.frames import registries

STEPS, SEEDS = 48, (1, 2)
RANKS = (8, 16, 32)
RATES_ALL = (3e-4, 1e-3, 3e-3)
RATES_LORA = (1e-3, 3e-3, 1e-2, 3e-2)
QUICK_STEPS, QUICK_SEEDS, QUICK_RANKS, QUICK_RATES = 4, (1,), (8,), (1e-3, 1e-2)
ALL = "all parameters"

Rewards = dict[str, dict[float, list[float]]]
"""By what is trained and learning rate: each seed's mean reward over the last quarter of the steps."""


def variant(study: Study, rank: int | None, rate: float, seed: int) -> Study:
    """The study with another learning rate, and LoRA of this rank where one is given."""
    values = study.model_dump(mode="json", exclude_none=True)
    values["seed"] = seed
    values["grpo"]["learning_rate"] = rate
    if rank is not None:
        values["model"]["trainable"] = "lora"
        values["model"]["lora"]["rank"] = rank
    return parse_study(values, "lora_sweep")


def last_quarter(study: Study, model: Path, questions: pl.DataFrame, site: str) -> float:
    """Mean reward of the last quarter of the steps from the base model."""
    trainer = LocalTrainer(load_policy(study, model), study, questions, site)
    with tempfile.TemporaryDirectory() as folder:
        rewards = trainer.run(0, study.total_steps, Path(folder)).rewards
    return float(np.mean(rewards[-(len(rewards) // 4) :]))


def best(found: dict[float, list[float]]) -> tuple[float, float]:
    """The learning rate with the highest mean reward, and that reward."""
    rate = max(found, key=lambda rate: np.mean(found[rate]))
    return rate, float(np.mean(found[rate]))


def plot(rewards: Rewards, file: Path) -> None:
    """Reward over the learning rate, mean and range over seeds."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, found in rewards.items():
        rates = sorted(found)
        (line,) = axis.plot(rates, [np.mean(found[rate]) for rate in rates], "o-", label=name)
        low, high = ([pick(found[rate]) for rate in rates] for pick in (min, max))
        axis.fill_between(rates, low, high, color=line.get_color(), alpha=0.15)
    axis.set(xscale="log", xlabel="learning rate", ylabel="reward, last quarter of the steps")
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one rank, two rates, a few steps")
    parser.add_argument("--ranks", type=int, nargs="+", help=f"of LoRA, instead of {RANKS}")
    parser.add_argument("--plot", type=Path, help="also draw reward over learning rate into this file")
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
    study = chosen_study(given.quick, QUICK_STEPS if given.quick else STEPS)
    seeds = QUICK_SEEDS if given.quick else SEEDS
    ranks = given.ranks or (QUICK_RANKS if given.quick else RANKS)
    model = make_model(study, given.cache)
    rewards: Rewards = {}
    print(f"{study.total_steps} steps, 1 thread; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'trained':16}{'rate':>8}{'reward':>10}  by seed")
    site = registries(study, study.sites.train)[0]
    questions = {seed: site_questions(site, study.with_seed(seed)).train for seed in seeds}
    for rank in (None, *ranks):
        rates = QUICK_RATES if given.quick else RATES_ALL if rank is None else RATES_LORA
        name = ALL if rank is None else f"LoRA, rank {rank}"
        rewards[name] = {}
        for rate in rates:
            runs = [last_quarter(variant(study, rank, rate, seed), model, questions[seed], site.site) for seed in seeds]
            rewards[name][rate] = runs
            by_seed = " ".join(f"{reward:.3f}" for reward in runs)
            print(f"{name:16}{rate:>8.0e}{np.mean(runs):>10.3f}  {by_seed}", flush=True)
    if given.plot:
        plot(rewards, given.plot)
    found = {name: best(by_rate) for name, by_rate in rewards.items()}
    adapter = f"LoRA, rank {ranks[0]}"
    values = {
        "rate_all": found[ALL][0],
        "rate_lora": found[adapter][0],
        "rate_ratio": found[adapter][0] / found[ALL][0],
        "reward_all": found[ALL][1],
        "reward_lora": max(reward for name, (_, reward) in found.items() if name != ALL),
    }
    print(json.dumps({name: round(value, 4) for name, value in values.items()}))


if __name__ == "__main__":
    main()
