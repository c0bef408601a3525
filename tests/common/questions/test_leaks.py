"""Can the answer be told without the record? A classifier sees how the choices look and nothing else."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from common.questions.building import build_questions
from common.questions.codebook import fit_codebook
from common.registry.config import read_registry_config
from common.registry.registry import Registry, load_registry
from common.study import Questions

ROOT = Path(__file__).parents[3]
SPEC = Questions(ask=("number",))


def looks(questions: pl.DataFrame) -> np.ndarray:
    """How each choice looks, shape (questions, choices, 6): letter, rank, number of choices, decimals, zeros, sign."""
    rows = []
    for choices in questions["choices"]:
        values = [float(c) for c in choices]
        rows.append(
            [
                (
                    letter,
                    sorted(values).index(value),
                    len(choices),
                    len(text.partition(".")[2]),
                    len(text) - len(text.rstrip("05")),
                    text.startswith("-"),
                )
                for letter, (text, value) in enumerate(zip(choices, values, strict=True))
            ]
        )
    return np.array(rows, dtype=float)


def accuracy_without_the_record(questions: pl.DataFrame) -> tuple[float, int]:
    """Of picking the likeliest choice of held-out patients by its looks."""
    x, answer = looks(questions), questions["answer"].to_numpy()
    right = np.arange(x.shape[1]) == answer[:, None]
    held_out = questions["patient"].hash(seed=1).to_numpy() % 2 == 0
    model = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    model.fit(x[~held_out].reshape(-1, x.shape[2]), right[~held_out].ravel())
    scores = model.predict_proba(x[held_out].reshape(-1, x.shape[2]))[:, 1].reshape(-1, x.shape[1])
    return float(np.mean(scores.argmax(axis=1) == answer[held_out])), int(held_out.sum())


def assert_nothing_leaks(questions: pl.DataFrame) -> None:
    accuracy, n = accuracy_without_the_record(questions)
    assert abs(accuracy - 0.2) < 3.5 * np.sqrt(0.2 * 0.8 / n), f"{accuracy:.3f} of {n} told by their looks"


def ask(registry: Registry) -> pl.DataFrame:
    codebook = fit_codebook(registry.frame, registry.features, SPEC, 1)
    questions = build_questions(registry, registry.frame["patient"], codebook, SPEC, 1, None)
    # Where the step is under 0.1 the choices are observed values, and all there is to tell is frequency.
    return questions.filter(pl.col("feature") != "ph")


def test_looks_tell_nothing_in_round_numbers(clinic: Registry) -> None:
    fives = (pl.col("pressure") / 5).round() * 5
    kept = pl.int_range(pl.len()) % 4 == 0
    frame = clinic.frame.with_columns(pl.when(kept).then("pressure").otherwise(fives).alias("pressure"))
    assert_nothing_leaks(ask(Registry("clinic", clinic.features, frame)))


def test_looks_tell_nothing_in_real_hospitals() -> None:
    config = read_registry_config(ROOT / "site_configs" / "ist" / "ist-italy.toml")
    if not os.path.exists(config.table.path):
        pytest.skip(f"the IST table is not at {config.table.path}")
    assert_nothing_leaks(ask(load_registry(config)))


def test_the_classifier_finds_a_leak_where_there_is_one(clinic: Registry) -> None:
    """Distractors that are one off, as if digits had not been matched."""
    questions = ask(clinic).filter(pl.col("feature") == "pressure")
    fives = []
    for choices, answer in questions.select("choices", "answer").iter_rows():
        values = [str(round(int(c) / 10) * 10 + (0 if i == answer else 3)) for i, c in enumerate(choices)]
        fives.append(values)
    leaky = questions.with_columns(pl.Series("choices", fives))
    accuracy, _ = accuracy_without_the_record(leaky)
    assert accuracy > 0.9
