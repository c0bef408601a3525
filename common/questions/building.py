"""From a registry to questions: one row per question, built feature by feature for all patients at once."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.choices import Choices, build_choices
from common.questions.codebook import Codebook, Column
from common.questions.paper_choices import paper_choices
from common.questions.printing import AS_RECORDED
from common.questions.randomness import Keys, combine, hash_keys
from common.questions.rendering import (
    SYSTEM,
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
        "record": pl.Int64(),
        "task": pl.String(),
        "feature": pl.String(),
        "section": pl.String(),
        "kind": pl.String(),
        "system": pl.String(),
        "prompt": pl.String(),
        "choices": pl.List(pl.String()),
        "answer": pl.Int64(),
        "reference": pl.String(),
    }
)
"""`record`: which of the patient's rows. `reference`: the right answer's text. A question with choices has `answer`,
the index of `reference` among them; one without has an empty list and null."""
ID_LENGTH = 16
MASKED_VALUE = "masked_value"
LOOKUP = "lookup"
CHOICES = "//choices"


@dataclass(frozen=True)
class Query:
    """What is asked of every record that holds the answer.

    `sentence`: the question; `column`: the statistics from which choices are made; `shown`: the features that stand
    in the record; `masked`: whether the target is one of them, printed as `[MASK]`; `answers`: printed value -> answer,
    others stay as printed; `order`: of the choices, where letters are not shuffled.
    """

    target: Feature
    sentence: str
    column: Column
    shown: tuple[Feature, ...]
    masked: bool = False
    answers: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()


class Built(NamedTuple):
    """A frame with `SCHEMA`, and how many questions were left without a distractor and dropped (`paper` only)."""

    questions: pl.DataFrame
    dropped: int


def askable(features: Iterable[Feature], codebook: Codebook, spec: Questions) -> list[Feature]:
    """The features whose value can be masked: declared so, of a kind that is asked, and varying in training."""
    return [f for f in features if f.ask and codebook.of(f).maskable and codebook.of(f).kind in spec.ask]


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
    queries = [
        Query(
            f,
            ask_masked(f),
            codebook.of(f),
            tuple(shown_with(f, registry.features, registry.times, codebook)),
            masked=True,
        )
        for f in askable(registry.features, codebook, spec)
    ]
    return build_asked(MASKED_VALUE, queries, registry, patients, codebook, spec, seed, per_patient)


def build_asked(
    task: str,
    queries: Sequence[Query],
    registry: Registry,
    patients: Iterable[str],
    codebook: Codebook,
    spec: Questions,
    seed: int,
    per_patient: int | None,
) -> Built:
    """The `queries` about `patients`' records, `per_patient` of them at random for each record or all."""
    frame = registry.frame.filter(pl.col("patient").is_in(sorted(set(patients))))
    keys = question_keys(frame, queries, task, seed)
    wanted = present(frame, queries)
    if per_patient is not None:
        wanted &= lowest(combine(keys, hash_keys(seed, "draw", ["feature"])), wanted, per_patient, axis=1)
    return construct(registry, frame, queries, wanted, keys, codebook, spec, task)


def lookup_questions(registry: Registry, codebook: Codebook, spec: Questions, seed: int, n: int) -> pl.DataFrame:
    """At most `n` questions about values that the record SHOWS, drawn over all patients and askable features.

    They teach a small model to read a record and to bind letters to choices. Nothing is masked or left out of
    the record (but outcomes), so all look-ups of a patient share one record text. Task `lookup`, else as
    `build_questions`.
    """
    frame = registry.frame
    queries = [
        Query(
            f,
            ask_shown(f),
            codebook.of(f),
            tuple(shown_with(f, registry.features, registry.times, codebook, masked=False)),
        )
        for f in askable(registry.features, codebook, spec)
    ]
    keys = question_keys(frame, queries, LOOKUP, seed)
    wanted = present(frame, queries)
    wanted &= lowest(combine(keys, hash_keys(seed, "draw", ["lookup"])), wanted, n, axis=None)
    return construct(registry, frame, queries, wanted, keys, codebook, spec, LOOKUP).questions


RECORD = pl.int_range(pl.len(), dtype=pl.Int64).over("patient")
"""Which of its patient's rows a row is."""


def question_keys(frame: pl.DataFrame, queries: Sequence[Query], task: str, seed: int) -> Keys:
    """Random keys of all possible questions, shape (rows, queries). A patient's second row gets keys of its own."""
    name = pl.col("patient") + "|" + RECORD.cast(pl.String)
    rows = hash_keys(seed, "row", frame.select(name).to_series())
    prefix = "" if task in (MASKED_VALUE, LOOKUP) else f"{task}|"
    return combine(rows[:, None], hash_keys(seed, "feature", [prefix + q.target.column for q in queries])[None, :])


def present(frame: pl.DataFrame, queries: Sequence[Query]) -> NDArray[np.bool_]:
    present = frame.select(pl.col(q.target.column).is_not_null().alias(str(i)) for i, q in enumerate(queries))
    # A frame without columns has no rows.
    return present.to_numpy().reshape(frame.height, len(queries)).astype(bool)


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
    queries: Sequence[Query],
    wanted: NDArray[np.bool_],
    keys: Keys,
    codebook: Codebook,
    spec: Questions,
    task: str,
) -> Built:
    """The questions of the `wanted` (row, query) pairs, in that order."""
    if spec.fidelity != "paper" and any(q.column.decimals == AS_RECORDED for q in queries):
        raise ValueError("a codebook of the paper's construction cannot serve a strict study")
    printed = value_columns(frame, registry.features, codebook)
    lines = line_columns(printed, registry.features)
    records = frame.select("patient", RECORD.alias("record"))
    parts = []
    for i, query in enumerate(queries):
        rows = np.flatnonzero(wanted[:, i])
        if not len(rows):
            continue
        target = query.target.column
        truth = printed[target][rows].replace(query.answers) if query.answers else printed[target][rows]
        choices = make_choices(query, frame[target][rows], truth, spec, keys[rows, i])
        record = record_parts(query.shown, target if query.masked else None, registry.features)
        prompt = prompt_expression(record, query.sentence, pl.col(CHOICES), spec.max_choices)
        needed = sorted({target, *prompt.meta.root_names()} - {CHOICES})
        prompts = lines[rows, needed].hstack([choices.texts.alias(CHOICES)]).select(prompt).to_series()
        columns = {"row": rows, "query": np.full(len(rows), i), "prompt": prompts, "reference": truth}
        columns |= {"choices": choices.texts, "answer": choices.answer}
        parts.append(records[rows].hstack(pl.DataFrame(columns)))
    if not parts:
        return Built(SCHEMA.to_frame(), 0)
    made = pl.concat(parts)
    questions = made.filter(pl.col("choices").list.len() > 1).sort("row", "query")
    place = questions["query"]
    questions = questions.with_columns(
        pl.Series("feature", [q.target.column for q in queries])[place],
        pl.Series("section", [q.target.section for q in queries])[place],
        pl.Series("kind", [q.column.kind for q in queries])[place],
        pl.lit(registry.site).alias("site"),
        pl.lit(task).alias("task"),
        pl.lit(SYSTEM).alias("system"),
    )
    ids = question_ids(registry.site, task, questions)
    return Built(questions.with_columns(ids).select(SCHEMA.names()), made.height - questions.height)


def make_choices(query: Query, raw: pl.Series, truth: pl.Series, spec: Questions, keys: Keys) -> Choices:
    """Args: raw, truth: the answers as the registry has them and as they are printed, shape (n,), no null."""
    if spec.fidelity == "paper":
        choices = paper_choices(query.column, truth, spec, keys)
    else:
        choices = build_choices(query.column, raw, truth, spec, keys)
    return in_order(choices, query.order) if query.order else choices


def in_order(choices: Choices, order: Sequence[str]) -> Choices:
    """The same choices in one order for all questions; what the order does not name comes last, by its text."""
    place = {text: i for i, text in enumerate(order)}
    texts = [sorted(row, key=lambda text: (place.get(text, len(place)), text)) for row in choices.texts.to_list()]
    truth = choices.texts.list.get(choices.answer)
    answer = [row.index(text) for row, text in zip(texts, truth, strict=True)]
    return Choices(
        pl.Series(choices.texts.name, texts, dtype=pl.List(pl.String)),
        pl.Series(choices.answer.name, answer, dtype=pl.Int64),
    )


def question_ids(site: str, task: str, questions: pl.DataFrame) -> pl.Series:
    """Short SHA-256 of what the question is: site, patient, task, feature, choices in their order, and the record of
    a patient who has several."""
    place = pl.when(pl.col("record") > 0).then(pl.format("|record {}", "record")).otherwise(pl.lit(""))
    texts = questions.select(
        pl.concat_str(
            [pl.lit(site), "patient", pl.lit(task), "feature", pl.col("choices").list.join("|")], separator="|"
        )
        + place
    ).to_series()
    ids = [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in texts]
    return pl.Series("question_id", ids, dtype=pl.String)
