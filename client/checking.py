"""What a site would bring to a study: its features, questions of each task and their length."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.replies import Summarised
from client.site import Site
from common.questions.codebook import Codebook
from common.questions.variables import quantities
from common.registry.config import Feature
from common.registry.registry import PATIENT, Registry
from common.study import Study, parse_study
from common.tasks.asking import TASKS
from common.tasks.site_questions import plan_site

CHARACTERS_A_TOKEN = 4
"""Rule of thumb for English text and subword tokenizers, used where the study's tokenizer is not at hand."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """Questions of one task about the training patients, `per_patient` of them a record. Lengths are of prompts, in
    tokens; `too_long` is how many exceed `grpo.max_prompt_tokens` and would not be trained on."""

    task: str
    questions: int
    patients: int
    features: int
    median: int
    most: int
    """95th percentile."""
    longest: int
    too_long: int


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


def feature_lines(features: tuple[Feature, ...]) -> list[tuple[str, str, str, str, str, str]]:
    """Section, name, unit, kind, when it is known, its use; one line for all times of a variable."""
    lines: list[tuple[str, str, str, str, str, str]] = []
    for measured in quantities(features).values():
        first = measured[0]
        sections = list(dict.fromkeys(f.section for f in measured))
        known = ", ".join(dict.fromkeys(f.known for f in measured))
        section = first.section if len(sections) == 1 else f"{sections[0]} and {len(sections) - 1} more"
        use = "yes" if any(f.ask for f in measured) else "shown only"
        lines.append((section, first.name, first.unit, first.kind, known, use))
    return lines


def model_at_hand(site: Site, study: Study) -> Path | None:
    """Folder of the study's model: the one that it was configured with here, or a local one that it names."""
    configured = site.state / "studies" / study.hash / "study.json"
    if configured.exists():
        place = Path(json.loads(configured.read_text(encoding="utf-8"))["model"])
    else:
        place = Path(site.settings.models.get(study.model.base, study.model.base))
    return place if place.is_dir() else None


def by_thumb(questions: pl.DataFrame) -> Lengths:
    characters = questions["system"].str.len_chars() + questions["prompt"].str.len_chars()
    return -(-characters.to_numpy().astype(np.int64) // CHARACTERS_A_TOKEN)


def by_tokenizer(folder: Path, study: Study) -> Callable[[pl.DataFrame], Lengths]:
    """Counts exactly what training compares with `grpo.max_prompt_tokens`."""
    from transformers import AutoTokenizer

    from common.models.policy import prefill_of, prompt_text

    tokenizer = AutoTokenizer.from_pretrained(str(folder))

    def lengths(questions: pl.DataFrame) -> Lengths:
        rows = questions.select("system", "prompt").iter_rows()
        texts = [prompt_text(tokenizer, prefill_of(study), system, prompt) for system, prompt in rows]
        return np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]], dtype=np.int64)

    return lengths


def by_task(questions: pl.DataFrame, measure: Callable[[pl.DataFrame], Lengths], limit: int) -> list[Asked]:
    """Args: measure: tokens of each question; limit: the longest prompt that is trained on."""
    out = []
    for (task,), part in questions.group_by("task", maintain_order=True):
        lengths = measure(part)
        out.append(
            Asked(
                task=str(task),
                questions=part.height,
                patients=part["patient"].n_unique(),
                features=part["feature"].n_unique(),
                median=int(np.median(lengths)),
                most=int(np.quantile(lengths, 0.95)),
                longest=int(lengths.max()),
                too_long=int((lengths > limit).sum()),
            )
        )
    return out


def summarise(registry: Registry, asked: list[Asked]) -> Summarised:
    """Counts for others to see; which of them may be seen is decided at the door (client/egress.py)."""
    frame = registry.frame
    cells: list[tuple[str, str, int, int]] = []
    declared = {outcome.column for outcome in registry.outcomes}
    for measured in quantities(tuple(f for f in registry.features if f.column not in declared)).values():
        present = pl.any_horizontal(pl.col(f.column).is_not_null() for f in measured)
        patients = frame.filter(present)[PATIENT].n_unique()
        cells.append(("feature", measured[0].name, patients, patients))
    for outcome in registry.outcomes:
        if outcome.task != "outcome":
            continue
        answers = frame.select(PATIENT, pl.col(outcome.column).replace(outcome.values).alias("answer")).drop_nulls()
        classes = answers.group_by("answer").agg(pl.col(PATIENT).n_unique()).sort("answer")
        cells += [("outcome", f"{outcome.question} {answer}", n, n) for answer, n in classes.iter_rows()]
    for one in asked:
        cells.append(("task", one.task, one.questions, one.patients))
    schema = {"what": pl.String, "name": pl.String, "count": pl.Int64, "patients": pl.Int64}
    return Summarised(frame[PATIENT].n_unique(), pl.DataFrame(cells, schema=schema, orient="row"))
