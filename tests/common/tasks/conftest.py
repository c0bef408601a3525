"""A ward in small: two windows of creatinine before the time of prediction, one after it, and how the stay ended."""

import numpy as np
import polars as pl
import pytest

from common.registry.config import Feature, Outcome
from common.registry.registry import Registry

TIMES = ("24 h", "48 h", "discharge")


def later(window: int, **more: str) -> Feature:
    return Feature(
        column=f"creatinine@{window}",
        name="Creatinine",
        unit="mg/dL",
        section=f"Hours {12 * window} to {12 * window + 12}",
        kind="number",
        variable="creatinine",
        **{"known": "24 h", **more},
    )


FEATURES = (
    Feature(column="age", name="Age", unit="years", section="Patient", kind="number", known="24 h"),
    later(0),
    later(1),
    later(3, known="48 h", ask=False),
    Feature(column="dialysis", name="Dialysis", section="Course", kind="category", known="48 h"),
    Feature(
        column="end",
        name="Discharged to",
        section="Outcome",
        kind="category",
        known="discharge",
        ask=False,
        values={"0": "died", "1": "hospice", "2": "home", "3": "rehabilitation"},
    ),
)
OUTCOMES = (
    Outcome(
        column="end",
        question="Will the patient die in hospital or leave it for a hospice?",
        at="24 h",
        values={"died": "yes", "hospice": "yes", "home": "no", "rehabilitation": "no"},
    ),
    Outcome(column="creatinine@3", question="What will creatinine (mg/dL) be at 48 h?", at="24 h", task="forecast"),
)


@pytest.fixture(scope="package")
def ward() -> Registry:
    """500 stays of 400 patients; every fourth patient has two."""
    rng = np.random.default_rng(5)
    n = 500
    first = rng.lognormal(0.2, 0.5, n)
    third = (first * rng.lognormal(0, 0.1, n)).round(2)
    measured = rng.random(n) < 0.6
    ends = np.where(first > 1.8, "died", rng.choice(["hospice", "home", "rehabilitation"], n, p=[0.1, 0.6, 0.3]))
    frame = pl.DataFrame({
        "patient": sorted([f"p{i:03d}" for i in range(400)] + [f"p{i:03d}" for i in range(0, 400, 4)]),
        "age": rng.integers(18, 90, n).astype(float),
        "creatinine@0": first.round(2),
        "creatinine@1": (first * rng.lognormal(0, 0.05, n)).round(2),
        "creatinine@3": [float(x) if there else None for x, there in zip(third, measured, strict=True)],
        "dialysis": rng.choice(["yes", "no"], n, p=[0.2, 0.8]),
        "end": [None if i % 50 == 7 else str(end) for i, end in enumerate(ends)],
    })  # fmt: skip
    return Registry("ward", FEATURES, frame, times=TIMES, outcomes=OUTCOMES)
