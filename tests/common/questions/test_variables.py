"""Columns of one variable: an hourly table in small. Lactate follows creatinine of the same hours, age nothing."""

import numpy as np
import polars as pl
import pytest

from common.questions.building import build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.questions.variables import as_quantities, pooled, quantities, stacked
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions

WINDOWS = ("Hours 0 to 8", "Hours 8 to 16", "Hours 16 to 24")
SPEC = Questions()


def feature(variable: str, window: int) -> Feature:
    column = f"{variable}@{window}"
    return Feature(column=column, name=variable.title(), section=WINDOWS[window], kind="number", variable=variable)


@pytest.fixture(scope="module")
def stays() -> Registry:
    rng = np.random.default_rng(3)
    n = 600
    frame = pl.DataFrame({"patient": [f"p{i:03d}" for i in range(n)], "age": rng.integers(18, 90, n).astype(float)})
    features = [Feature(column="age", name="Age", section="Patient", kind="number")]
    for w in range(len(WINDOWS)):
        creatinine = rng.lognormal(0, 0.5, n)
        values = {
            "creatinine": creatinine.round(2),
            "lactate": (2 * creatinine + rng.normal(0, 0.05, n)).round(2),
            "pulse": rng.normal(85, 15, n).round(),
        }
        for variable, numbers in values.items():
            gone = pl.Series(rng.random(n) < 0.3)
            kept = pl.select(pl.when(gone).then(None).otherwise(pl.Series(numbers))).to_series()
            frame = frame.with_columns(kept.alias(f"{variable}@{w}"))
            features.append(feature(variable, w))
    return Registry("ward", tuple(features), frame)


@pytest.fixture(scope="module")
def codebook(stays: Registry) -> Codebook:
    return fit_codebook(stays.frame, stays.features, SPEC, 1)


def test_a_record_is_one_row_for_each_time(stays: Registry) -> None:
    long = stacked(stays.frame, stays.features)
    expected = [
        (row["age"], row[f"creatinine@{w}"], row[f"lactate@{w}"], row[f"pulse@{w}"])
        for w in range(len(WINDOWS))
        for row in stays.frame.iter_rows(named=True)
    ]
    assert long.columns == list(quantities(stays.features)) == ["age", "creatinine", "lactate", "pulse"]
    assert long.rows() == expected


def test_a_time_without_a_variable_has_nulls(stays: Registry) -> None:
    fewer = [f for f in stays.features if f.column != "pulse@1"]
    long = stacked(stays.frame, fewer)
    assert long["pulse"][600:1200].null_count() == 600 and long["lactate"][600:1200].null_count() < 300


def test_there_is_one_entry_and_it_is_of_all_values(stays: Registry, codebook: Codebook) -> None:
    assert list(codebook.columns) == ["age", "creatinine", "lactate", "pulse"]
    alone = fit_codebook(
        pooled(stays.frame, stays.features)["pulse"].to_frame().with_columns(other=pl.lit("x")),
        [q for q in as_quantities(stays.features) if q.column == "pulse"],
        SPEC,
        1,
    )
    assert codebook.columns["pulse"] == alone.columns["pulse"]
    assert codebook.of(feature("pulse", 0)) is codebook.of(feature("pulse", 2))
    assert Codebook.from_dict(codebook.to_dict()) == codebook


def test_what_gives_a_variable_away_is_left_out_at_all_times(stays: Registry, codebook: Codebook) -> None:
    assert codebook.excluded == {"creatinine": ("lactate",), "lactate": ("creatinine",)}
    questions = build_questions(stays, stays.frame["patient"], codebook, SPEC, 1, None)
    creatinine = questions.filter(pl.col("feature") == "creatinine@1")
    assert creatinine.height == stays.frame["creatinine@1"].count()
    for prompt in creatinine["prompt"]:
        record = prompt.partition("\n\nQuestion: ")[0]
        assert "Lactate" not in record and record.count("Creatinine: ") == 1
        assert "[Hours 8 to 16]\nCreatinine: [MASK]" in record
        assert "What is the masked value of Creatinine in [Hours 8 to 16]?" in prompt
    assert creatinine["prompt"].str.contains("Pulse: ").mean() > 0.9


def test_two_plain_columns_are_compared_over_the_records_alone(stays: Registry) -> None:
    """Repeated rows would count a weak relation three times; the entry of a table without times is the same."""
    twin = stays.frame.with_columns(twin=pl.col("age") // 10 * 10)
    features = (*stays.features, Feature(column="twin", name="Decade", section="Patient", kind="number"))
    plain = [f for f in features if not f.variable]
    with_times = fit_codebook(twin, features, SPEC, 1)
    without = fit_codebook(twin, plain, SPEC, 1)
    assert with_times.excluded["age"] == without.excluded["age"] == ("twin",)


def test_the_papers_codebook_has_one_entry_and_no_filter_between_hourly_columns(stays: Registry) -> None:
    paper = Questions(fidelity="paper")
    codebook = fit_codebook(stays.frame[:200], stays.features, paper, 1)
    assert list(codebook.columns) == ["age", "creatinine", "lactate", "pulse"] and codebook.excluded == {}
