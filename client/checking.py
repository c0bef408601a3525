"""What a site would bring to a study: questions of each task, their length, and a summary that may be shared."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from client.policy import Policy
from common.questions.codebook import Codebook
from common.registry.registry import Registry
from common.study import Study, parse_study
from common.tasks.asking import TASKS
from common.tasks.site_questions import plan_site

CHARACTERS_A_TOKEN = 4
"""Rule of thumb for English text and subword tokenizers, used where the study's tokenizer is not at hand."""


@dataclass(frozen=True)
class Asked:
    """Questions of one task about the training patients, `per_patient` of them a record. Lengths are of prompts, in
    characters."""

    task: str
    questions: int
    patients: int
    features: int
    median: int
    longest: int


def own_study(registry: Registry) -> Study:
    """Default settings, with every task that the site declares something for: how a site looks at itself."""
    declared = {"masked_value", *(outcome.task for outcome in registry.outcomes)}
    tasks = [name for name in TASKS if name in declared]
    values = {
        "name": "own-look",
        "sites": {"train": [registry.site]},
        "model": {"base": "none"},
        "questions": {"tasks": tasks},
        "rounds": {"validation_patients": 0},
    }
    return parse_study(values, "a site's own look")


def training_questions(registry: Registry, study: Study, codebook: Codebook | None) -> pl.DataFrame:
    """Before sections are weighed. Args: codebook: the one that the study gives, if any."""
    plan = plan_site(registry, study, codebook)
    return plan.build(registry, plan.train, study).questions


def by_task(questions: pl.DataFrame) -> list[Asked]:
    out = []
    for (task,), part in questions.group_by("task", maintain_order=True):
        lengths = part["prompt"].str.len_chars().to_numpy()
        out.append(
            Asked(
                task=str(task),
                questions=part.height,
                patients=part["patient"].n_unique(),
                features=part["feature"].n_unique(),
                median=int(np.median(lengths)),
                longest=int(lengths.max()),
            )
        )
    return out


def tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_A_TOKEN)


def shareable(registry: Registry, asked: list[Asked], policy: Policy) -> str:
    """What may be told to others: no value of any patient, and no count of fewer patients than the site permits."""
    patients = registry.frame["patient"].n_unique()
    least = policy.minimum_patients
    lines = [f"site: {registry.site}", f"patients: {patients if patients >= least else f'fewer than {least}'}"]
    lines.append(f"features in use: {len(registry.features)}, left out: {len(registry.left_out)}")
    told = [a for a in asked if a.patients >= least]
    lines += [f"{a.task}: {a.questions} questions about {a.patients} patients, {a.features} features" for a in told]
    withheld = [a.task for a in asked if a.patients < least]
    lines.append(f"withheld, fewer than {least} patients: {', '.join(withheld) if withheld else 'nothing'}")
    return "\n".join(lines) + "\n"
