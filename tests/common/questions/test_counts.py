import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.questions.common_codebook import fit_columns, fit_from_counts, layout_of
from common.questions.counts import DIGITS, MANY, VALUE, add, count_values, digits
from common.questions.joint import count_pairs
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions

SPEC = Questions()
COMMON = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def column(kind: str, values: list, **more: str) -> tuple[pl.DataFrame, list[Feature]]:
    """One record a patient."""
    dtype = {"number": pl.Float64, "category": pl.String, "text": pl.String}[kind]
    frame = pl.DataFrame({"patient": [f"p{i}" for i in range(len(values))], "x": pl.Series(values, dtype=dtype)})
    return frame, [Feature(column="x", name="X", section="S", kind=kind, **more)]


def cells(table: pl.DataFrame, what: str) -> dict[str, int]:
    return dict(table.filter(pl.col("what") == what).select("cell", "count").iter_rows())


def parts_of(registry: Registry, sites: int, seed: int) -> list[pl.DataFrame]:
    """The registry's patients dealt to sites at random; a site may be empty."""
    patients = registry.frame["patient"].unique().sort()
    site = np.random.default_rng(seed).integers(sites, size=len(patients))
    return [registry.frame.filter(pl.col("patient").is_in(patients.filter(site == s).to_list())) for s in range(sites)]


@COMMON
@given(st.data())
def test_however_patients_are_dealt_to_sites_the_codebook_is_one(registries, data: st.DataObject) -> None:
    registry = data.draw(registries())
    parts = parts_of(registry, data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2**32 - 1)))
    features = registry.features
    together, apart = count_values(registry.frame, features, 1), [count_values(p, features, 1) for p in parts]
    assert add(apart).equals(add([together]))
    layout = layout_of(add(apart), features, fit_columns(add(apart), features))
    pairs = sum(count_pairs(part, features, layout)["count"].to_numpy() for part in parts)
    rows = count_pairs(registry.frame, features, layout)["count"].to_numpy()
    assert np.array_equal(pairs, rows)
    pooled = fit_from_counts(add([together]), rows, features, SPEC)
    assert fit_from_counts(add(apart), pairs, features, SPEC).hash == pooled.hash


@COMMON
@given(st.lists(st.lists(st.integers(0, 24), max_size=15), min_size=3, max_size=3))
def test_adding_does_not_depend_on_the_order(values: list[list[int]]) -> None:
    tables = []
    for site in values:
        frame, features = column("category", [f"v{v}" for v in site])
        tables.append(count_values(frame, features, 1))
    first, second, third = tables
    assert add([add([first, second]), third]).equals(add([first, add([third, second])]))


def test_more_than_20_values_are_a_mark_and_no_list() -> None:
    few, features = column("category", [f"v{i % 20}" for i in range(100)])
    many, _ = column("category", [f"v{i % 21}" for i in range(100)])
    assert len(cells(count_values(few, features, 1), VALUE)) == 20
    assert not cells(count_values(many, features, 1), VALUE)
    other, _ = column("category", ["another"])
    both = add([count_values(few, features, 1), count_values(other, features, 1)])
    assert not cells(both, VALUE) and cells(both, MANY) == {"": 1}


def test_free_text_is_never_listed() -> None:
    frame, features = column("text", ["Mrs Example"] * 30)
    assert "Example" not in count_values(frame, features, 1).write_csv()


def test_a_number_among_too_few_is_counted_more_coarsely() -> None:
    frame, features = column("number", [120.0] * 12 + [123.0, 124.0, 119.0, 118.0, 117.0, 130.0])
    found = count_values(frame, features, 5)
    assert cells(found, digits(4)) == {"1.200e+02": 12}
    assert cells(found, digits(3)) == {}
    assert cells(found, digits(2)) == {"1.2e+02": 5}
    # The door holds this one back: one patient stands behind it.
    assert cells(found, digits(1)) == {"1e+02": 1}


def test_cells_say_how_many_patients_stand_behind_them() -> None:
    frame, features = column("category", ["a"] * 8)
    frame = frame.with_columns(patient=pl.Series(["p1"] * 7 + ["p2"]))
    found = count_values(frame, features, 1).row(by_predicate=pl.col("what") == VALUE, named=True)
    assert (found["count"], found["patients"]) == (8, 2)


def test_columns_of_one_variable_are_counted_together() -> None:
    frame = pl.DataFrame({"patient": ["p", "q"], "early": [1.0, 2.0], "late": [2.0, None]})
    features = [Feature(column=c, name=c, section="S", kind="number", variable="lactate") for c in ("early", "late")]
    found = count_values(frame, features, 1)
    assert cells(found, digits(DIGITS)) == {"1.000e+00": 1, "2.000e+00": 2}
    columns = fit_columns(found, features)
    assert list(columns) == ["lactate"] and columns["lactate"].values == ("2", "1")


@pytest.mark.parametrize("kind", ["number", "category", "text"])
def test_a_column_without_values_has_no_cells(kind: str) -> None:
    frame, features = column(kind, [None, None])
    assert count_values(frame, features, 1)["quantity"].unique().to_list() == [""]
