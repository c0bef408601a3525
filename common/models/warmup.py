"""What the built-in small model is shown before any hospital's data: how to read, to answer, and base rates.

Everything comes from a declared public cohort whose columns were drawn independently of each other, so no
relation between two features of a real patient can be learned here. Each synthetic record, one value masked,
is followed by several questions that share it:

- look-ups of a value that the record shows: they teach reading and binding a value to its letter;
- guesses of the masked value: independent of the record by construction, so what is learned is its frequency,
  and GRPO later finds right answers among its samples; asked several times with the choices in another order,
  which binds what was guessed to its letter;
- practice: the masked value in an invented world, where it follows from a few other values by random weights.
  Practice questions name their world, so they leave the plain question's base rates alone; they teach the
  network to gather evidence from the whole record, which GRPO then only has to weigh anew.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from common.questions.building import MASKED_VALUE, lookup_questions
from common.questions.codebook import fit_codebook
from common.questions.randomness import hash_keys
from common.questions.rendering import label, render_choices
from common.registry.registry import Registry, shuffle_columns
from common.study import Study
from common.tasks.asking import build_tasks

LETTERS = "ABCDE"
QUESTION = "\n\nQuestion: "
EVIDENCE = 4
"""Values that decide the answer in a practice world."""
WEIGHT_SD = 2.0


@dataclass(frozen=True)
class Exercise:
    """A record and the questions asked about it, each with its answer."""

    record: str
    questions: tuple[tuple[str, str], ...]


def reasoning(value: str, letter: str) -> str:
    """The built-in model's answer: the value it takes to be likely, then its letter."""
    return f"Likely: {value}\n\\boxed{{{letter}}}"


def answer_of(choices: list[str], index: int) -> str:
    return reasoning(choices[index], LETTERS[index])


def exercises(public: Registry, study: Study, count: int, seed: int) -> list[Exercise]:
    """`count` records with `builtin.questions_per_record` questions each; the same seed gives the same texts."""
    spec, builtin = study.questions, study.model.builtin
    shuffled = shuffle_columns(public, count, seed)
    codebook = fit_codebook(shuffled.frame, shuffled.features, spec, seed)
    built = build_tasks(shuffled, shuffled.frame["patient"], codebook, spec, seed, per_patient=1).questions
    everything = shuffled.frame.height * len(shuffled.features)
    lookups = lookup_questions(shuffled, codebook, spec, seed, everything)
    by_patient = {key[0]: part for key, part in lookups.group_by("patient", maintain_order=True)}
    worlds = [World(shuffled, np.random.default_rng([seed, k])) for k in range(builtin.practice_worlds)]
    shares = {f.column: frequencies(shuffled, f.column) for f in shuffled.features if f.kind == "category"}
    predicted = predicted_shares(built)
    records = {row["patient"]: row for row in shuffled.frame.iter_rows(named=True)}
    n_lookup = round(builtin.lookup_share * builtin.questions_per_record)
    # A number with few distinct values is asked like a category, but the worlds invent relations for categories.
    invented = {f.column for f in shuffled.features if f.kind == "category"}
    names = {f.column: label(f) for f in shuffled.features}
    quantity = {f.column: f.quantity for f in shuffled.features}
    rng = np.random.default_rng([seed, 1 << 20])
    out = []
    for row in one_each(built, seed).iter_rows(named=True):
        masked = row["task"] == MASKED_VALUE
        record, question = row["prompt"].split(QUESTION)
        known = shares.get(row["feature"]) if masked else predicted.get((row["task"], row["feature"]))
        plain = guesses(row, question, known, builtin.guesses, rng)
        asked = []
        for lookup in by_patient[row["patient"]].iter_rows(named=True):
            # A question about another feature may show what this record leaves out: outcomes, excluded pairs.
            other = quantity[lookup["feature"]] != quantity[row["feature"]] or not masked
            if other and f"\n{names[lookup['feature']]}: " in record:
                text = QUESTION + lookup["prompt"].split(QUESTION)[1]
                asked.append((text, answer_of(lookup["choices"], lookup["answer"])))
        picked = [asked[i] for i in rng.permutation(len(asked))[:n_lookup]]
        rest = builtin.questions_per_record - len(picked)
        practised = []
        practice = masked and row["feature"] in invented
        for k in rng.permutation(len(worlds))[: max(0, rest - len(plain))] if practice else ():
            index = worlds[k].answer(row["feature"], row["choices"], records[row["patient"]], rng)
            text = f"{QUESTION}Practice {k}: {question}"
            practised.append((text, answer_of(row["choices"], index)))
        out.append(Exercise(record, (*plain, *practised, *picked)))
    return out


def one_each(questions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One question of each patient, whichever task it is of."""
    order = pl.Series("order", hash_keys(seed, "exercise", questions["question_id"]))
    ranked = questions.with_columns(order)
    return ranked.filter(pl.col("order") == pl.col("order").min().over("patient")).drop("order")


def predicted_shares(questions: pl.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """(task, feature) -> how often each answer is right, of questions whose answers are categories and not masked."""
    categories = questions.filter((pl.col("task") != MASKED_VALUE) & (pl.col("kind") == "category"))
    counts = categories.group_by("task", "feature", "reference").len().sort("task", "feature", "reference")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for task, feature, answer, number in counts.iter_rows():
        found.setdefault((task, feature), {})[answer] = float(number)
    return found


def frequencies(registry: Registry, column: str) -> dict[str, float]:
    counts = registry.frame[column].drop_nulls().value_counts().sort(column)
    total = counts["count"].sum()
    return {value: number / total for value, number in counts.iter_rows()}


def guesses(
    row: dict[str, Any], question: str, shares: dict[str, float] | None, count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """The masked value asked `count` times, the choices in another order each time, answered by its frequency.

    What is guessed is chance; the letter of what was guessed is not: this is what teaches to bind the two.

    Args:
        row: the question; shares: frequencies of its feature's values, None for a number, guessed uniformly.
    """
    sentence = question.split("\n")[0]
    out = []
    for _ in range(count):
        choices = [row["choices"][i] for i in rng.permutation(len(row["choices"]))]
        weight = np.array([1.0 if shares is None else shares.get(choice, 1e-6) for choice in choices])
        index = int(rng.choice(len(choices), p=weight / weight.sum()))
        out.append((f"{QUESTION}{sentence}\n{render_choices(choices)}", answer_of(choices, index)))
    return out


class World:
    """Invented relations: each category follows from `EVIDENCE` other features by random weights."""

    def __init__(self, registry: Registry, rng: np.random.Generator) -> None:
        self.frequency: dict[str, dict[str, float]] = {}
        self.evidence: dict[str, list[str]] = {}
        self.medians = {f.column: registry.frame[f.column].median() for f in registry.features if f.kind == "number"}
        columns = [f.column for f in registry.features if f.kind in ("category", "number")]
        self.weights: dict[tuple[str, str, str, str], float] = {}
        for feature in registry.features:
            if feature.kind != "category":
                continue
            self.frequency[feature.column] = frequencies(registry, feature.column)
            others = [c for c in columns if c != feature.column]
            self.evidence[feature.column] = [others[i] for i in rng.permutation(len(others))[:EVIDENCE]]
            for other in self.evidence[feature.column]:
                for seen in self.classes(registry.frame[other]):
                    for value in self.frequency[feature.column]:
                        self.weights[feature.column, value, other, seen] = rng.normal(0.0, WEIGHT_SD)

    def classes(self, column: pl.Series) -> list[str]:
        if column.dtype == pl.String:
            return sorted(column.drop_nulls().unique().to_list())
        return ["high", "low"]

    def seen(self, column: str, value: object) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return "high" if value > self.medians[column] else "low"  # type: ignore[operator]

    def answer(self, feature: str, choices: list[str], record: dict[str, object], rng: np.random.Generator) -> int:
        """Index of the choice that this world's draw for `feature` takes, given the rest of the record."""
        logits = []
        for choice in choices:
            score = float(np.log(self.frequency[feature].get(choice, 1e-6)))
            for other in self.evidence[feature]:
                seen = self.seen(other, record[other])
                score += self.weights.get((feature, choice, other, seen), 0.0) if seen is not None else 0.0
            logits.append(score)
        return int(np.argmax(np.array(logits) + rng.gumbel(size=len(logits))))
