"""A synthetic sepsis hospital: patients drawn from the table of known relations in `relations.py`.

What differs between sites: case mix (focus and place of acquisition), severity, laboratory calibration,
share of missing values, and the seed. The relations are the same everywhere.
"""

import hashlib

import numpy as np
import polars as pl

from common.registry import relations
from common.registry.config import Synthetic

Draws = dict[str, np.ndarray]
"""Everything known about the patients so far, by name: float arrays, or arrays of text for categories."""


def generate(parameters: Synthetic, site: str) -> pl.DataFrame:
    """The raw table of one synthetic hospital: `patient` and one column per name in `relations.py`.

    Deterministic in (parameters, site). Missing values are null.
    """
    digest = hashlib.sha256(f"{site}:{parameters.seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    size = parameters.patients
    draws = admit(parameters, size, rng)
    table: dict[str, pl.Series] = {}

    def keep(column: str, values: np.ndarray) -> None:
        draws[column] = values
        table[column] = pl.Series(column, values.tolist())

    keep("age", np.clip(np.round(66 + 13 * draws["age_z"]), 18, 99))
    keep("sex", np.where(draws["male"] == 1, "male", "female"))
    keep("focus", draws["focus"])
    for choice in relations.CHOICES:
        keep(choice.column, draw_choice(choice, draws, rng))
    works = covered(draws["drug_class"], draws["organism"], draws["resistance"])
    draws["untreated"] = (~works).astype(float)
    charted = works ^ (rng.random(size) > relations.APPROPRIATE_CHARTED)
    keep("appropriate", np.where(charted, "yes", "no"))
    for state in relations.STATES:
        draws[state.name] = draw_state(state, draws, rng)
    levels = {s.name: np.searchsorted(np.array(s.cuts), draws[s.name]) for s in relations.STATES}
    # Some columns bear their state's name (the charted `frailty` of the state `frailty`), so the states are
    # taken before any column is kept, and charted grades never cause anything.
    for grade in relations.GRADES:
        table[grade.column] = pl.Series(grade.column, draw_grade(grade, levels[grade.state], rng).tolist())
    for measure in relations.MEASURES:
        keep(measure.column, draw_measure(measure, draws, parameters.calibration, rng))
    parts = [draws[m.column] for m in relations.MEASURES if m.column.startswith("sofa_")]
    keep("sofa", np.sum(parts, axis=0))
    for event in relations.EVENTS:
        keep(event.column, draw_event(event, draws, rng))
    stay = np.exp(1.7 + 0.35 * draws["course"] + 0.25 * draws["lung"] + rng.normal(0, 0.4, size))
    keep("icu_days", np.clip(np.round(stay), 1, 120))
    # Days before the ICU keep a stay that ends there from being told by two equal numbers.
    before = np.where(draws["place"] == "hospital", rng.poisson(5, size), rng.poisson(1, size))
    after = np.clip(np.round(np.exp(2.0 + 0.3 * draws["frailty"] + rng.normal(0, 0.5, size))), 1, 180)
    keep("hospital_days", before + draws["icu_days"] + np.where(draws["icu_death"] == "yes", 0, after))
    frame = pl.DataFrame(list(table.values()))
    return with_gaps(frame, parameters.missing, rng).insert_column(0, identifiers(site, size))


def identifiers(site: str, size: int) -> pl.Series:
    width = len(str(size))
    return pl.Series("patient", [f"{site}-{number:0{width}d}" for number in range(1, size + 1)])


def admit(parameters: Synthetic, size: int, rng: np.random.Generator) -> Draws:
    """What a patient brings along: age, sex, severity, focus and place of acquisition."""
    mix = relations.CASE_MIX[parameters.case_mix]
    hospital = relations.HOSPITAL_ACQUIRED[parameters.case_mix]
    return {
        "age_z": rng.normal(0, 1, size),
        "male": (rng.random(size) < 0.57).astype(float),
        "severity": rng.normal(parameters.severity, 1, size),
        "focus": rng.choice(np.array(list(mix)), size=size, p=np.array(list(mix.values()))),
        "place": np.where(rng.random(size) < hospital, "hospital", "community"),
    }


def effect(causes: dict[str, float], draws: Draws) -> np.ndarray:
    """Sum of weight x cause; a cause `name=value` is 1 where the category has that value."""
    total = np.zeros(len(draws["age_z"]))
    for cause, weight in causes.items():
        name, _, value = cause.partition("=")
        total += weight * ((draws[name] == value) if value else draws[name])
    return total


def draw_state(state: relations.State, draws: Draws, rng: np.random.Generator) -> np.ndarray:
    explained = sum(weight**2 for weight in state.causes.values())
    noise = np.sqrt(max(1.0 - explained, 0.1))
    return effect(state.causes, draws) + rng.normal(0, noise, len(draws["age_z"]))


def draw_grade(grade: relations.Grade, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    slip = rng.random(len(level)) > grade.faithful
    step = np.where(level == 1, np.where(rng.random(len(level)) < 0.5, -1, 1), np.where(level == 0, 1, -1))
    return np.array(grade.values)[np.where(slip, level + step, level)]


def draw_choice(choice: relations.Choice, draws: Draws, rng: np.random.Generator) -> np.ndarray:
    given = np.stack([draws[name] for name in choice.given], axis=1)
    out = np.full(len(given), "", dtype="U32")
    uniform = rng.random(len(given))
    for condition, weights in choice.weights.items():
        here = (given == np.array(condition)).all(axis=1)
        edges = np.cumsum(list(weights.values()))[:-1]
        out[here] = np.array(list(weights))[np.searchsorted(edges, uniform[here])]
    return out


def covered(drug: np.ndarray, organism: np.ndarray, resistance: np.ndarray) -> np.ndarray:
    """Whether the empirical class works against the organism as it is."""
    out = np.zeros(len(drug), dtype=bool)
    for name, organisms in relations.COVERS.items():
        for bug, also_resistant in organisms.items():
            out |= (drug == name) & (organism == bug) & (also_resistant | (resistance == "no"))
    return out


def draw_measure(measure: relations.Measure, draws: Draws, calibration: float, rng: np.random.Generator) -> np.ndarray:
    value = measure.centre + effect(measure.causes, draws) + rng.normal(0, measure.spread, len(draws["age_z"]))
    value = np.exp(value) if measure.log else value
    value = value * calibration if measure.lab else value
    return np.round(np.clip(value, measure.low, measure.high), measure.decimals)


def draw_event(event: relations.Event, draws: Draws, rng: np.random.Generator) -> np.ndarray:
    centre = sum(weight * event.centres.get(name, 0.0) for name, weight in event.causes.items())
    odds = event.bias + effect(event.causes, draws) - centre
    happens = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    if event.only_if:
        happens |= draws[event.only_if] == "yes"
    return np.where(happens, "yes", "no")


def with_gaps(frame: pl.DataFrame, share: float, rng: np.random.Generator) -> pl.DataFrame:
    """Values missing at random: labs twice as often, day 7 half as often again; age, sex and outcomes never."""
    labs = {m.column for m in relations.MEASURES if m.lab}
    never = {"age", "sex", "icu_days", "hospital_days", *(e.column for e in relations.EVENTS)}
    columns = []
    for name in frame.columns:
        chance = share * (2.0 if name in labs else 1.0) * (1.5 if name.endswith("@7") else 1.0)
        gone = rng.random(frame.height) < min(chance, 0.95)
        columns.append(frame[name] if name in never else frame[name].set(pl.Series(gone), None))
    return pl.DataFrame(columns)
