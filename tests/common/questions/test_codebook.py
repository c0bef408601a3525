import json
import tomllib

import numpy as np
import polars as pl
import pytest
import tomli_w

from common.errors import UserError
from common.questions.codebook import Codebook, decimals_to_print, fit_codebook, support, unit_counts
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions


@pytest.fixture(scope="module")
def codebook(clinic: Registry) -> Codebook:
    return fit_codebook(clinic.frame, clinic.features, Questions(), seed=1)


def one(kind: str, values: list) -> tuple[pl.DataFrame, list[Feature]]:
    dtype = pl.Float64 if kind == "number" else pl.String
    features = [
        Feature(column="x", name="X", section="S", kind=kind),
        Feature(column="y", name="Y", section="S", kind="category"),
    ]
    return pl.DataFrame({"x": pl.Series(values, dtype=dtype), "y": ["a"] * len(values)}), features


@pytest.mark.parametrize(("distinct", "kind"), [(2, "category"), (20, "category"), (21, "number"), (100, "number")])
def test_a_number_with_at_most_20_values_is_a_category(distinct: int, kind: str) -> None:
    frame, features = one("number", [float(i % distinct) for i in range(400)])
    column = fit_codebook(frame, features, Questions(), 1).columns["x"]
    assert (column.kind, column.maskable) == (kind, True)
    assert column.float_ratio == (1.0 if kind == "number" else 0.0)


@pytest.mark.parametrize(("distinct", "asked"), [(1, False), (2, True), (20, True), (21, False)])
def test_text_with_more_than_20_values_and_constants_are_not_asked(distinct: int, asked: bool) -> None:
    frame, features = one("category", [f"v{i % distinct}" for i in range(400)])
    assert fit_codebook(frame, features, Questions(), 1).columns["x"].maskable is asked


def test_a_column_that_is_all_missing_in_training_is_not_asked() -> None:
    frame, features = one("number", [None, None, None])
    assert not fit_codebook(frame, features, Questions(), 1).columns["x"].maskable


def test_frequencies_are_those_of_the_rows(codebook: Codebook, clinic: Registry) -> None:
    column = codebook.columns["source"]
    counted = dict(clinic.frame["source"].value_counts().iter_rows())
    assert dict(zip(column.values, column.counts, strict=True)) == counted
    assert list(column.counts) == sorted(column.counts, reverse=True)


def test_decimals(codebook: Codebook) -> None:
    pressure, lactate, ph = (codebook.columns[c] for c in ("pressure", "lactate", "ph"))
    assert (pressure.decimals, lactate.decimals, ph.decimals) == (0, 1, 2)


@pytest.mark.parametrize(
    ("numbers", "decimals"),
    [
        (np.arange(100.0), 0),
        (np.append(np.arange(95.0), [0.5] * 5), 0),
        (np.arange(100) / 10, 1),
        (np.arange(100) / 100, 2),
        (np.arange(1, 101) / 88.4, 2),
        (np.arange(1, 101) / 0.0113, 0),
    ],
)
def test_decimals_print_nine_in_ten_values_exactly(numbers: np.ndarray, decimals: int) -> None:
    assert decimals_to_print(numbers) == decimals


@pytest.mark.parametrize(("rounded", "grain"), [(500, 500), (100, 100), (10, 10), (5, 5), (2, 2), (1, 1)])
def test_the_grain_is_how_most_values_are_noted(rounded: int, grain: int) -> None:
    exact = np.random.default_rng(5).normal(9000, 2000, 1000).round()
    noted = np.where(np.arange(1000) % 5 == 0, exact, (exact / rounded).round() * rounded)
    frame, features = one("number", noted.tolist())
    assert fit_codebook(frame, features, Questions(), 1).columns["x"].grain == grain


def test_over_1000_values_are_thinned_by_patients_and_not_by_values() -> None:
    """Half of 4,000 rows are 0, the others 1 to 2,000: 500 of the 1,000 that stand for them are 0."""
    values, counts = support(unit_counts(pl.Series([0.0] * 2000 + [float(i) for i in range(1, 2001)]), 0), 0)
    assert (values[0], counts[0], len(values), sum(counts)) == ("0", 500, 501, 1000)
    assert set(np.diff(sorted(map(int, values[1:])))) == {4}


def test_shortcuts_are_found_and_nothing_else(codebook: Codebook) -> None:
    assert codebook.excluded == {
        "pressure": ("shock",),
        "shock": ("pressure",),
        "lactate": ("twin",),
        "twin": ("lactate",),
    }


def test_a_higher_threshold_keeps_what_a_lower_one_leaves_out(clinic: Registry) -> None:
    loose = fit_codebook(clinic.frame, clinic.features, Questions(mi_threshold=0.7), 1)
    # Whether the pressure is under 70 holds 0.66 nats at most (ln 2 = 0.69); a copy holds far more.
    assert set(loose.excluded) == {"lactate", "twin"}


def test_it_survives_json_and_toml(codebook: Codebook) -> None:
    values = codebook.to_dict()
    assert Codebook.from_dict(json.loads(json.dumps(values))) == codebook
    again = Codebook.from_dict(tomllib.loads(tomli_w.dumps(values)))
    assert again == codebook and again.hash == codebook.hash


def test_the_hash_follows_the_content(codebook: Codebook, clinic: Registry) -> None:
    assert fit_codebook(clinic.frame, clinic.features, Questions(), 1).hash == codebook.hash
    assert fit_codebook(clinic.frame[1:], clinic.features, Questions(), 1).hash != codebook.hash


def test_no_rows_are_refused(clinic: Registry) -> None:
    with pytest.raises(UserError, match="no training patients"):
        fit_codebook(clinic.frame.clear(), clinic.features, Questions(), 1)
