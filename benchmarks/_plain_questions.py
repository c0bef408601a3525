"""The rules of `paper` as a script has them: one row and one feature at a time, with pandas, numpy and scikit-learn.

Written for the benchmark alone, after docs/reproducing_the_paper.md and not after the product's code. Nothing is done
twice on purpose: the codebook, the mixtures and the lists of values are made once per column, before the clock runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.mixture import GaussianMixture

from common.questions.codebook import Codebook, Column
from common.registry.config import Feature

LETTERS = "ABCDE"


@dataclass
class Statistics:
    """What a script keeps of one column: distinct values with their frequencies, the mixture, three shares."""

    values: list[str]
    numbers: list[str]
    counts: dict[str, int]
    mixture: GaussianMixture | None
    float_ratio: float
    nonnegative: float
    whole: float


def statistics(column: Column) -> Statistics:
    """The same figures as the codebook's, in the shape that such a script has them."""
    counts = dict(zip(column.values, column.counts, strict=True))
    is_number = column.kind == "number"
    numbers = [v for v in column.values if is_number and not np.isnan(pd.to_numeric(v, errors="coerce"))]
    words = [v for v in column.values if v not in set(numbers)]
    mixture = None
    if column.mixture:
        mixture = GaussianMixture(len(column.mixture))
        mixture.weights_ = np.array([c.weight for c in column.mixture])
        mixture.means_ = np.array([[c.mean] for c in column.mixture])
        mixture.covariances_ = np.array([[[c.sd**2]] for c in column.mixture])
        mixture.precisions_cholesky_ = np.array([[[1 / c.sd]] for c in column.mixture])
    return Statistics(words, numbers, counts, mixture, column.float_ratio, column.share_nonnegative, column.share_whole)


def sample(values: list[str], counts: dict[str, int], truth: str, size: int, rng: np.random.Generator) -> list[str]:
    """Without replacement, by frequency, the truth excluded."""
    others = [v for v in values if v != truth]
    weights = np.array([counts[v] for v in others], dtype=float)
    size = min(size, len(others))
    return list(rng.choice(others, size=size, replace=False, p=weights / weights.sum())) if size else []


def numeric_distractors(truth: str, size: int, known: Statistics, difficulty: float, rng: np.random.Generator) -> list:
    """Rungs of an arithmetic ladder around the truth, or other observed values where the mixture is too narrow."""
    value = float(truth)
    point = np.array([[value]])
    sd = 0.0
    if known.mixture.score_samples(point)[0] > -745:
        posterior = known.mixture.predict_proba(point)[0]
        sd = float(np.sqrt(known.mixture.covariances_[rng.choice(len(posterior), p=posterior), 0, 0]))
    if sd < 0.1:
        rungs = [float(v) for v in sample(known.numbers, known.counts, truth, size, rng)]
    else:
        rank = rng.integers(size + 1)
        rungs = [value + (place - rank) * difficulty * sd for place in range(size + 1) if place != rank]
    if known.nonnegative > 0.95:
        rungs = [r for r in rungs if r >= 0]
    return [str(round(r)) for r in rungs] if known.whole > 0.9 else [f"{round(r, 1):.1f}" for r in rungs]


def choices_of(truth: str, known: Statistics, difficulty: float, rng: np.random.Generator) -> list[str]:
    """Up to 5 in random order, without duplicates."""
    size = 4
    if known.mixture is None:
        distractors = sample(known.values, known.counts, truth, size, rng)
    else:
        words = sample(known.values, known.counts, truth, rng.binomial(size, 1 - known.float_ratio), rng)
        distractors = words + numeric_distractors(truth, size - len(words), known, difficulty, rng)
    choices = [truth]
    for text in distractors:
        same = any(text == c or (known.mixture is not None and float(text) == float(c)) for c in choices)
        if not same:
            choices.append(text)
    rng.shuffle(choices)
    return choices


def record_of(row: pd.Series, masked: Feature, features: Sequence[Feature], excluded: Sequence[str]) -> str:
    """`[Section]` blocks of `Name (unit): value` lines, the masked one as `[MASK]`."""
    sections: dict[str, list[str]] = {}
    for feature in features:
        value = row[feature.column]
        if feature.column in excluded or pd.isna(value):
            continue
        name = f"{feature.name} ({feature.unit})" if feature.unit else feature.name
        value = "[MASK]" if feature.column == masked.column else value
        sections.setdefault(feature.section, []).append(f"{name}: {value}")
    return "\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items())


def plain_questions(
    printed: pd.DataFrame,
    features: Sequence[Feature],
    codebook: Codebook,
    known: dict[str, Statistics],
    difficulty: float,
    seed: int,
) -> pd.DataFrame:
    """Every present value of a maskable column is asked.

    Args:
        printed: `patient` and one column of Python strings per feature, missing None; known: `statistics` by column.
    """
    rng = np.random.default_rng(seed)

    def question(row: pd.Series, feature: Feature) -> dict[str, object]:
        truth = row[feature.column]
        choices = choices_of(truth, known[feature.column], difficulty, rng)
        record = record_of(row, feature, features, codebook.excluded.get(feature.column, ()))
        name = f"{feature.name} ({feature.unit})" if feature.unit else feature.name
        lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        prompt = f"{record}\n\nQuestion: What is the masked value of {name}?\n{lines}"
        return {
            "patient": row["patient"],
            "feature": feature.column,
            "prompt": prompt,
            "choices": choices,
            "answer": choices.index(truth),
        }

    asked = []
    for feature in features:
        present = printed[printed[feature.column].notna()]
        if codebook.columns[feature.column].maskable and len(present):
            rows = present.apply(question, axis=1, args=(feature,))
            asked += [q for q in rows if len(q["choices"]) > 1]
    return pd.DataFrame(asked)
