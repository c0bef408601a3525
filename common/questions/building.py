"""From a registry to questions: one row per question, built feature by feature for all patients at once."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.choices import Choices, build_choices
from common.questions.codebook import Codebook
from common.questions.paper_choices import paper_choices
from common.questions.printing import AS_RECORDED
from common.questions.randomness import Keys, combine, hash_keys
from common.questions.rendering import (
    SYSTEM,
    Wording,
    ask_masked,
    ask_shown,
    line_columns,
    prompt_expression,
    record_parts,
    shown_with,
    value_columns,
)
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions

SCHEMA = pl.Schema(
    {
        "question_id": pl.String(),
        "site": pl.String(),
        "patient": pl.String(),
        "task": pl.String(),
        "feature": pl.String(),
        "section": pl.String(),
        "kind": pl.String(),
        "system": pl.String(),
        "prompt": pl.String(),
        "choices": pl.List(pl.String()),
        "answer": pl.Int64(),
    }
)
ID_LENGTH = 16
MASKED_VALUE = "masked_value"
LOOKUP = "lookup"
CHOICES = "//choices"


class Built(NamedTuple):
    """A frame with `SCHEMA`, and how many questions were left without a distractor and dropped (`paper` only)."""

    questions: pl.DataFrame
    dropped: int


def askable(features: Iterable[Feature], codebook: Codebook, spec: Questions) -> list[Feature]:
    """The features whose value can be masked: declared so, of a kind that is asked, and varying in training."""
    return [
        f
        for f in features
        if f.ask and codebook.columns[f.column].maskable and codebook.columns[f.column].kind in spec.ask
    ]


def build_questions(
    registry: Registry,
    patients: Iterable[str],
    codebook: Codebook,
    spec: Questions,
    seed: int,
    per_patient: int | None,
) -> pl.DataFrame:
    """Masked-value questions about `patients`, in the order of registry rows and features.

    A question depends on (seed, patient, feature) and the codebook only, not on the other patients asked about.

    Args:
        patients: identifiers; those that the registry does not have are ignored.
        per_patient: distinct features per row at random; None asks for every maskable present value.

    Returns:
        a frame with `SCHEMA`; `kind` is the kind in effect (`category` or `number`).
    """
    return build_counted(registry, patients, codebook, spec, seed, per_patient).questions


def build_counted(
    registry: Registry,
    patients: Iterable[str],
    codebook: Codebook,
    spec: Questions,
    seed: int,
    per_patient: int | None,
) -> Built:
    """`build_questions`, and how many questions were dropped."""
    frame = registry.frame.filter(pl.col("patient").is_in(sorted(set(patients))))
    targets = askable(registry.features, codebook, spec)
    keys = question_keys(frame, targets, seed)
    wanted = present(frame, targets)
    if per_patient is not None:
        wanted &= lowest(combine(keys, hash_keys(seed, "draw", ["feature"])), wanted, per_patient, axis=1)
    return construct(registry, frame, targets, wanted, keys, codebook, spec, MASKED_VALUE)


def lookup_questions(registry: Registry, codebook: Codebook, spec: Questions, seed: int, n: int) -> pl.DataFrame:
    """At most `n` questions about values that the record SHOWS, drawn over all patients and askable features.

    They teach a small model to read a record and to bind letters to choices. Nothing is masked or left out of
    the record (but outcomes), so all look-ups of a patient share one record text. Task `lookup`, else as
    `build_questions`.
    """
    frame = registry.frame
    targets = askable(registry.features, codebook, spec)
    keys = question_keys(frame, targets, seed)
    wanted = present(frame, targets)
    wanted &= lowest(combine(keys, hash_keys(seed, "draw", ["lookup"])), wanted, n, axis=None)
    return construct(registry, frame, targets, wanted, keys, codebook, spec, LOOKUP).questions


def question_keys(frame: pl.DataFrame, targets: Sequence[Feature], seed: int) -> Keys:
    """Random keys of all possible questions, shape (rows, targets). A patient's second row gets keys of its own."""
    name = pl.col("patient") + "|" + pl.int_range(pl.len()).over("patient").cast(pl.String)
    rows = hash_keys(seed, "row", frame.select(name).to_series())
    return combine(rows[:, None], hash_keys(seed, "feature", [f.column for f in targets])[None, :])


def present(frame: pl.DataFrame, targets: Sequence[Feature]) -> NDArray[np.bool_]:
    mask = np.zeros((frame.height, len(targets)), dtype=bool)
    for i, feature in enumerate(targets):
        mask[:, i] = frame[feature.column].is_not_null().to_numpy()
    return mask


def lowest(priority: Keys, among: NDArray[np.bool_], count: int, axis: int | None) -> NDArray[np.bool_]:
    """Mark the `count` lowest priorities of each row (axis 1) or of the whole table (axis None)."""
    shape = priority.shape
    flat = np.where(among, priority, np.iinfo(np.uint64).max)
    flat = flat if axis == 1 else flat.reshape(1, -1)
    chosen = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(flat, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen.reshape(shape)


def construct(
    registry: Registry,
    frame: pl.DataFrame,
    targets: Sequence[Feature],
    wanted: NDArray[np.bool_],
    keys: Keys,
    codebook: Codebook,
    spec: Questions,
    task: str,
) -> Built:
    """The questions of the `wanted` (row, target) pairs, in that order."""
    paper = spec.fidelity == "paper"
    if not paper and any(codebook.columns[f.column].decimals == AS_RECORDED for f in targets):
        raise ValueError("a codebook of the paper's construction cannot serve a strict study")
    masked = task == MASKED_VALUE
    wording: Wording = ask_masked if masked else ask_shown
    printed = value_columns(frame, registry.features, codebook)
    lines = line_columns(printed, registry.features)
    parts, dropped = [], 0
    for i, feature in enumerate(targets):
        rows = np.flatnonzero(wanted[:, i])
        if not len(rows):
            continue
        column, truth = codebook.columns[feature.column], feature.column
        if paper:
            choices = paper_choices(column, printed[truth][rows], spec, keys[rows, i])
            kept = (choices.texts.list.len() > 1).to_numpy()
            dropped += int((~kept).sum())
            if not kept.any():
                continue
            rows, choices = rows[kept], Choices(choices.texts.filter(kept), choices.answer.filter(kept))
        else:
            choices = build_choices(column, frame[truth][rows], printed[truth][rows], spec, keys[rows, i])
        shown = shown_with(feature, registry.features, registry.times, codebook, masked)
        record = record_parts(shown, feature.column if masked else None, registry.features)
        prompt = prompt_expression(record, wording(feature), pl.col(CHOICES), spec.max_choices)
        needed = {truth, *prompt.meta.root_names()} - {CHOICES}
        prompts = lines.select(needed)[rows].with_columns(choices.texts.alias(CHOICES)).select(prompt)
        parts.append(
            pl.DataFrame(
                {"row": rows, "place": i, "patient": frame["patient"][rows], "choices": choices.texts}
            ).with_columns(
                pl.lit(feature.column).alias("feature"),
                pl.lit(feature.section).alias("section"),
                pl.lit(column.kind).alias("kind"),
                prompts.to_series().alias("prompt"),
                choices.answer.alias("answer"),
            )
        )
    if not parts:
        return Built(SCHEMA.to_frame(), dropped)
    questions = pl.concat(parts).sort("row", "place")
    ids = question_ids(registry.site, task, questions)
    finished = questions.with_columns(
        ids, pl.lit(registry.site).alias("site"), pl.lit(task).alias("task"), pl.lit(SYSTEM).alias("system")
    ).select(SCHEMA.names())
    return Built(finished, dropped)


def question_ids(site: str, task: str, questions: pl.DataFrame) -> pl.Series:
    """Short SHA-256 of what the question is: site, patient, task, feature and choices in their order."""
    texts = questions.select(
        pl.concat_str(
            [pl.lit(site), "patient", pl.lit(task), "feature", pl.col("choices").list.join("|")], separator="|"
        )
    ).to_series()
    ids = [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in texts]
    return pl.Series("question_id", ids, dtype=pl.String)
