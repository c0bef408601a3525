"""Random registries for the property tests."""

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
