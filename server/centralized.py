"""Training without federation on the same questions: the paper's baseline on pooled data, and a site alone.

A cohort is one or more sites whose questions lie together. It takes as many optimiser steps as a site takes in
the federated run, each on as many questions as the sites' steps have together, so that every arm sees as many
questions and moves as often. Its questions are those that the sites build for themselves, each with its own
codebook, so that nothing but where they are learned from differs. One site alone, one site federated and
centralized over one site are the same computation, bit for bit.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from common.evaluation.answering import answer
from common.evaluation.scoring import right
from common.grpo.launch import JobTrainer
from common.grpo.local import LocalResult, LocalTrainer, by_step
from common.models.policy import Policy, load_policy, load_trainable, trainable_state
from common.study import Study
from server.round_store import Checkpoint, RoundStore
from server.run_folder import EventLog


@dataclass(frozen=True)
class Cohort:
    """Question frames (docs/design.md) by site."""

    train: Mapping[str, pl.DataFrame]
    validation: Mapping[str, pl.DataFrame]

    @property
    def stream(self) -> str:
        """What randomness derives from: the site's own name where it is one site."""
        return "+".join(sorted(self.train))

    @property
    def questions(self) -> pl.DataFrame:
        return pl.concat([self.train[site] for site in sorted(self.train)])


def validate(policy: Policy, cohort: Cohort, study: Study) -> dict[str, dict[str, Any]]:
    """Accuracy on each site's validation questions, as the federated arm reports it."""
    sites = {}
    for site, questions in sorted(cohort.validation.items()):
        if questions.is_empty():
            continue
        answered = answer(policy, questions, study.evaluation)
        sites[site] = {
            "accuracy": right(answered).cast(pl.Float64).mean(),
            "n_patients": answered["patient"].n_unique(),
            "n_questions": answered.height,
        }
    return sites


def against(sites: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {site: {**point, "baseline": baseline[site]["accuracy"]} for site, point in sites.items()}


def overall(sites: dict[str, dict[str, Any]]) -> float | None:
    asked = sum(point["n_questions"] for point in sites.values())
    return sum(point["accuracy"] * point["n_questions"] for point in sites.values()) / asked if asked else None


def train_cohort(study: Study, model: Path, cohort: Cohort, store: RoundStore, log: EventLog) -> Checkpoint:
    """All rounds of a cohort, from the last finished one on; a checkpoint at each round's end.

    Args:
        model: folder of the base model.

    Returns:
        the last round's checkpoint.
    """
    checkpoint = store.latest()
    if checkpoint is not None and checkpoint.round == study.rounds.rounds:
        return checkpoint
    policy = load_policy(study, model)
    if checkpoint is None:
        baseline = validate(policy, cohort, study)
        notes: dict[str, Any] = {"baseline": baseline, "sites": against(baseline, baseline)}
        checkpoint = Checkpoint(0, 0, trainable_state(policy), {}, notes)
        store.save(checkpoint)
    load_trainable(policy, checkpoint.model)
    together = study.grpo.prompts_per_step * len(cohort.train)
    pooled = study.model_copy(update={"grpo": study.grpo.model_copy(update={"prompts_per_step": together})})
    trainer = trainer_of(pooled, policy, model, cohort, store.folder)
    for number in range(checkpoint.round + 1, study.rounds.rounds + 1):
        checkpoint = train_round(study, policy, trainer, cohort, checkpoint, store, log, number)
    return checkpoint


def trainer_of(study: Study, policy: Policy, model: Path, cohort: Cohort, folder: Path) -> LocalTrainer | JobTrainer:
    """In this process, or as a job where the study's `[simulation]` names a launcher."""
    if study.simulation.launcher is None:
        return LocalTrainer(policy, study, cohort.questions, cohort.stream)
    job, questions = folder / "job", folder / "job" / "questions.parquet"
    job.mkdir(parents=True, exist_ok=True)
    cohort.questions.write_parquet(questions)
    return JobTrainer(policy, study, str(model), questions, cohort.stream, study.simulation, job)


def train_round(
    study: Study,
    policy: Policy,
    trainer: LocalTrainer | JobTrainer,
    cohort: Cohort,
    before: Checkpoint,
    store: RoundStore,
    log: EventLog,
    number: int,
) -> Checkpoint:
    steps = study.rounds.local_steps
    start = time.monotonic()
    result = trainer.run((number - 1) * steps, steps, store.folder / "state")
    learned = time.monotonic()
    sites = against(validate(policy, cohort, study), before.notes["baseline"])
    notes = {
        "baseline": before.notes["baseline"],
        "accuracy": overall(sites),
        "sites": sites,
        "seconds": spent(result, learned - start, time.monotonic() - learned),
    }
    after = Checkpoint(number, number * steps, trainable_state(policy), {}, notes)
    store.save(after)
    store.prune(study.rounds.keep_checkpoints)
    log.write("steps", site=cohort.stream, round=number, **by_step(result))
    log.write("round_finished", round=number, rounds=study.rounds.rounds, **notes)
    return after


def spent(result: LocalResult, training: float, evaluating: float) -> dict[str, float]:
    generating, learning = result.seconds["generating"], result.seconds["learning"]
    other = max(0.0, training - generating - learning)
    return {"generating": generating, "learning": learning, "evaluating": evaluating, "other": other}
