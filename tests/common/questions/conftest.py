"""Random registries for the property tests, and one fixed registry with known relations."""

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from common.registry.config import Feature
from common.registry.registry import Registry

DTYPES: dict[str, Any] = {"number": pl.Float64, "category": pl.String, "text": pl.String, "date": pl.Datetime}
WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
NUMBERS = st.one_of(
    st.integers(-3, 400).map(float),
    st.floats(0, 50).map(lambda x: round(x, 1)),
    st.floats(-1e4, 1e4, allow_nan=False),
)
DATES = st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2030, 1, 1)).map(
    lambda d: d.replace(microsecond=0)
)


@st.composite
def random_registries(draw: st.DrawFn) -> Registry:
    rows = draw(st.integers(2, 60))
    features, columns = [], {"patient": [f"p{i:03d}" for i in range(rows)]}
    for i in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(["category", "number", "number", "date", "text"]))
        pool = {"category": WORDS, "text": WORDS, "number": NUMBERS, "date": DATES}[kind]
        values = draw(st.lists(pool, min_size=1, max_size=40, unique=True))
        # The seed spreads the pool over the rows, so that hypothesis need not draw every cell.
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        missing = draw(st.sampled_from([0.0, 0.1, 0.6]))
        columns[f"c{i}"] = [None if rng.random() < missing else values[rng.integers(len(values))] for _ in range(rows)]
        features.append(
            Feature(
                column=f"c{i}",
                name=f"Feature {i}",
                unit=draw(st.sampled_from(["", "mg/dL"])),
                section=draw(st.sampled_from(["Labs", "Course", "History"])),
                kind=kind,
                ordinal=draw(st.booleans()),
                known=draw(st.sampled_from(["baseline", "baseline", "outcome"])),
                ask=draw(st.sampled_from([True, True, False])),
            )
        )
    schema = {"patient": pl.String, **{f.column: DTYPES[f.kind] for f in features}}
    return Registry("random", tuple(features), pl.DataFrame(columns, schema=schema))


@pytest.fixture(scope="session")
def registries() -> Callable[[], st.SearchStrategy[Registry]]:
    return random_registries


@pytest.fixture(scope="session")
def clinic() -> Registry:
    """2,000 patients; `shock` is a function of `pressure`, `twin` copies `lactate`, the rest is independent."""
    rng = np.random.default_rng(7)
    n = 2000
    pressure = rng.normal(75, 15, n).round()
    lactate = rng.lognormal(0.8, 0.6, n).round(1)
    columns = {
        "patient": [f"p{i:04d}" for i in range(n)],
        "sex": rng.choice(["Female", "Male"], n, p=[0.4, 0.6]),
        "source": rng.choice(
            ["Lung", "Abdomen", "Urine", "Skin", "Blood", "Joint", "Brain"],
            n,
            p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02],
        ),  # fmt: skip
        "pressure": pressure,
        "shock": np.where(pressure < 70, "Yes", "No"),
        "lactate": np.where(rng.random(n) < 0.1, np.nan, lactate),
        "twin": lactate * 2,
        "ph": rng.normal(7.35, 0.05, n).round(2),
        "gcs": rng.integers(3, 16, n).astype(float),
        "admitted": [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=int(d)) for d in rng.integers(0, 900, n)],
        "death": rng.choice(["Yes", "No"], n, p=[0.2, 0.8]),
    }
    features = (
        Feature(column="sex", name="Sex", section="Demographics", kind="category"),
        Feature(column="source", name="Source", section="Infection", kind="category"),
        Feature(column="pressure", name="Mean arterial pressure", unit="mmHg", section="Vitals", kind="number"),
        Feature(column="shock", name="Shock", section="Vitals", kind="category"),
        Feature(column="lactate", name="Lactate", unit="mmol/L", section="Labs", kind="number"),
        Feature(column="twin", name="Lactate doubled", unit="mmol/L", section="Labs", kind="number"),
        Feature(column="ph", name="pH", section="Labs", kind="number"),
        Feature(column="gcs", name="GCS", section="Vitals", kind="number"),
        Feature(column="admitted", name="Admitted", section="Demographics", kind="date"),
        Feature(column="death", name="Death in hospital", section="Outcome", kind="category", known="outcome"),
    )
    return Registry("clinic", features, pl.DataFrame(columns).with_columns(pl.col("lactate").fill_nan(None)))
