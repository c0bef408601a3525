"""The `strict` construction does not change by accident: the same questions, byte for byte."""

import hashlib

import numpy as np
import polars as pl

from common.questions.building import build_questions, lookup_questions
from common.questions.codebook import fit_codebook
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions

COLUMNS = (
    "question_id", "site", "patient", "task", "feature", "section", "kind", "system", "prompt", "choices", "answer",
)  # fmt: skip
"""Of the frames at publication; columns added since are not in the hash."""
AS_PUBLISHED = "70720f84816964d520abe4b42b92148f46ffc739f3b7ddadc0b1c65df95dd358"
"""SHA-256 over the questions below. A change of `strict` on purpose changes it, and is named in the changelog."""


def ward() -> Registry:
    """120 patients with a number, a number with one decimal, a number with few values and two categories."""
    rng = np.random.default_rng(11)
    n = 120
    columns = {
        "patient": [f"p{i:03d}" for i in range(n)],
        "sex": rng.choice(["Female", "Male"], n),
        "source": rng.choice(["Lung", "Abdomen", "Urine", "Skin", "Blood", "Joint"], n),
        "pressure": rng.integers(40, 140, n).astype(float),
        "lactate": [
            None if gone else value
            for gone, value in zip(rng.random(n) < 0.2, rng.integers(4, 160, n) / 10, strict=True)
        ],
        "gcs": rng.integers(3, 16, n).astype(float),
    }
    features = tuple(
        Feature(column=c, name=c.title(), section="Ward", kind="category" if c in ("sex", "source") else "number")
        for c in columns
        if c != "patient"
    )
    frame = pl.DataFrame(columns)
    return Registry("ward", features, frame)


def test_strict_questions_are_byte_identical_to_those_published() -> None:
    registry, spec = ward(), Questions()
    codebook = fit_codebook(registry.frame, registry.features, spec, 1)
    asked = build_questions(registry, registry.frame["patient"], codebook, spec, 1, None)
    shown = lookup_questions(registry, codebook, spec, 1, 60)
    text = pl.concat([asked, shown]).select(COLUMNS).write_ndjson()
    assert hashlib.sha256(text.encode()).hexdigest() == AS_PUBLISHED
