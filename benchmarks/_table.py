"""A registry for the benchmarks: numbers, categories and gaps drawn from a seed, with as many columns as asked for."""

import numpy as np
import polars as pl

from common.registry.config import Feature
from common.registry.registry import Registry

SECTIONS = ("Demographics", "History", "Vital signs", "Laboratory", "Treatment")
UNITS = ("mg/dL", "mmol/L", "mmHg", "U/L")
MISSING = 0.1
STATES = 5
"""Hidden states that columns depend on, so that some pairs of columns share information."""


def mixed_registry(patients: int, columns: int, seed: int) -> Registry:
    """Of every five columns three are numbers (whole, with one and with two decimals), two categories (4 and 9 values).

    A tenth of the values is missing at random. One row is one patient.
    """
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(patients, STATES))
    width = len(str(patients))
    series = [pl.Series("patient", [f"p{number:0{width}d}" for number in range(patients)])]
    features = []
    for place in range(columns):
        hidden = states[:, place % STATES] * rng.uniform(0, 1) + rng.normal(size=patients)
        kind = "category" if place % 5 >= 3 else "number"
        present = draw_words(hidden, place) if kind == "category" else draw_numbers(hidden, place, rng)
        gone = pl.Series(rng.random(patients) < MISSING)
        series.append(present.alias(f"x{place}").set(gone, None))
        features.append(
            Feature(
                column=f"x{place}",
                name=f"Measurement {place}" if kind == "number" else f"Finding {place}",
                unit=UNITS[place % len(UNITS)] if kind == "number" else "",
                section=SECTIONS[place * len(SECTIONS) // columns],
                kind=kind,
            )
        )
    return Registry("benchmark", tuple(features), pl.DataFrame(series))


def draw_numbers(hidden: np.ndarray, place: int, rng: np.random.Generator) -> pl.Series:
    centre = rng.uniform(5, 150)
    shapes = (
        np.round(centre + 15 * hidden),
        np.round(np.exp(1 + 0.6 * hidden), 1),
        np.round(7 + 0.3 * hidden, 2),
    )
    return pl.Series(shapes[place % 5] + 0.0)


def draw_words(hidden: np.ndarray, place: int) -> pl.Series:
    values = 4 if place % 5 == 3 else 9
    cuts = np.linspace(-1.5, 1.5, values - 1)
    return pl.Series(np.array([f"Grade {level}" for level in range(values)])[np.searchsorted(cuts, hidden)])
