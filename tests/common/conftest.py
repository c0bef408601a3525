"""One fixed registry with known relations."""

import datetime

import numpy as np
import polars as pl
import pytest

from common.registry.config import Feature
from common.registry.registry import Registry


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
