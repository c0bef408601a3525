"""From a declared table to the tidy frame, its refusals, pooling and shuffling."""

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from common.errors import UserError
from common.registry.config import Feature, RegistryConfig
from common.registry.registry import LeftOut, Registry, concat_registries, load_registry, shuffle_columns

SECRET = "Zaphod"


def feature(column: str, kind: str = "category", **more: Any) -> dict[str, Any]:
    return {"column": column, "name": column.title(), "section": "All", "kind": kind, **more}


FEATURES = [
    feature("age", "number", unit="years"),
    feature("sex", values={"M": "male", "F": "female"}),
    feature("onset", "date"),
]
TEXT = """id,age,sex,onset,ward
p3,61.5,M,2024-03-01,a
p1,NA,F,2024-03-02 10:30,a
p2, 70 ,X,,b
"""


def declare(
    path: Path, features: list[dict[str, Any]] | None = None, site: str = "here", **more: Any
) -> RegistryConfig:
    source = "parquet" if path.suffix == ".parquet" else "csv"
    table = {"source": source, "path": str(path), **more.pop("table", {})}
    values = {"site": site, "patient": "id", "table": table, "features": features or FEATURES, **more}
    return RegistryConfig.model_validate(values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "registry.csv"
    file.write_text(TEXT)
    return file


def test_columns_are_parsed_by_kind_and_rows_sorted_by_patient(path: Path) -> None:
    registry = load_registry(declare(path))
    assert registry.site == "here"
    assert [f.column for f in registry.features] == ["age", "sex", "onset"]
    assert registry.frame.schema == {
        "patient": pl.String,
        "age": pl.Float64,
        "sex": pl.String,
        "onset": pl.Datetime("us"),
    }
    assert registry.frame.rows() == [
        ("p1", None, "female", datetime(2024, 3, 2, 10, 30)),
        ("p2", 70.0, "X", None),
        ("p3", 61.5, "male", datetime(2024, 3, 1)),
    ]


def test_parquet_and_csv_give_the_same_registry(path: Path, tmp_path: Path) -> None:
    typed = pl.DataFrame(
        {
            "id": ["p3", "p1", "p2"],
            "age": [61.5, float("nan"), 70.0],
            "sex": ["M", "F", "X"],
            "onset": [datetime(2024, 3, 1), datetime(2024, 3, 2, 10, 30), None],
        }
    )
    typed.write_parquet(tmp_path / "registry.parquet")
    assert_frame_equal(load_registry(declare(tmp_path / "registry.parquet")).frame, load_registry(declare(path)).frame)


def test_filters_keep_and_drop_rows(path: Path) -> None:
    assert load_registry(declare(path, table={"where": {"ward": ["a"]}})).frame["patient"].to_list() == ["p1", "p3"]
    assert load_registry(declare(path, table={"where_not": {"id": ["p1"]}})).frame["patient"].to_list() == ["p2", "p3"]


def test_where_not_keeps_rows_whose_value_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("id,a,b,ward\n1,x,u,\n2,y,v,a\n3,z,v,b\n")
    config = declare(path, [feature("a"), feature("b")], table={"where_not": {"ward": ["a"]}})
    assert load_registry(config).frame["patient"].to_list() == ["1", "3"]


def test_the_row_number_can_be_the_patient_and_survives_the_filter(path: Path) -> None:
    config = declare(path, patient="#row", table={"where_not": {"ward": ["nowhere"], "sex": ["F"]}})
    assert load_registry(config).frame["patient"].to_list() == ["1", "3"]


def test_missing_marks_hold_for_the_table_and_for_one_column(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_text("id,a,b\n1,9,9\n2,1,1\n3,0,?\n4,1,2\n")
    features = [feature("a", missing=["9"]), feature("b")]
    frame = load_registry(declare(path, features, table={"missing": ["?"]})).frame
    assert frame["a"].to_list() == [None, "1", "0", "1"]
    assert frame["b"].to_list() == ["9", "1", None, "2"]


def test_constant_and_empty_features_are_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text(f"id,a,b,same,none\n1,x,u,{SECRET},\n2,y,v,,NA\n")
    registry = load_registry(declare(path, [feature(c) for c in ("a", "same", "b", "none")]))
    assert [f.column for f in registry.features] == ["a", "b"]
    assert registry.frame.columns == ["patient", "a", "b"]
    assert registry.left_out == (
        LeftOut("same", "all values that are present are the same"),
        LeftOut("none", "all values are missing"),
    )


def refused(config: RegistryConfig, message: str) -> UserError:
    with pytest.raises(UserError, match=message) as caught:
        load_registry(config)
    assert config.table.path in caught.value.what
    assert caught.value.remedy
    assert SECRET not in str(caught.value)
    return caught.value


def test_a_missing_column_is_refused(path: Path) -> None:
    refused(declare(path, [*FEATURES, feature("lactate", "number")]), "no column 'lactate'")
    refused(declare(path, patient="number"), "no column 'number'")
    refused(declare(path, table={"where": {"Ward": ["a"]}}), "no column 'Ward'")


def test_duplicate_patients_are_refused_unless_declared(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text(f"id,age,sex,onset\n{SECRET},1,M,2024-01-01\n{SECRET},2,F,2024-01-02\nb,3,F,\n")
    refused(declare(path), "1 rows repeat a value of 'id'")
    assert load_registry(declare(path, one_row_per_patient=False)).frame["age"].to_list() == [1.0, 2.0, 3.0]


def test_a_patient_without_identifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nobody.csv"
    path.write_text("id,age,sex,onset\n,1,M,2024-01-01\nNA,1,M,2024-01-01\nb,2,F,2024-01-02\n")
    refused(declare(path), "'id' is empty in 2 of 3 rows")


def test_no_rows_are_refused(path: Path, tmp_path: Path) -> None:
    assert "table.where" in refused(declare(path, table={"where": {"ward": ["z"]}}), "no row is left").remedy
    header = tmp_path / "header.csv"
    header.write_text("id,age,sex,onset\n")
    assert "where" not in refused(declare(header), "no row is left").remedy


@pytest.mark.parametrize("value", [SECRET, "12,5", "nan", "inf", "5 mg"])
def test_values_that_are_not_numbers_are_counted_and_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(f'id,age,sex,onset\na,"{value}",M,2024-01-01\nb,2,F,2024-01-02\nc,,F,\n')
    refused(declare(path), "1 of 2 values of the column 'age' are not numbers")


def test_values_that_are_not_dates_are_counted_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "dates.csv"
    path.write_text(f"id,age,sex,onset\na,1,M,{SECRET}\nb,2,F,2024-01-02\nc,3,F,2024-13-45\n")
    refused(declare(path), "2 of 3 values of the column 'onset' are not dates")


def test_a_table_without_two_varying_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text("id,a,b\n1,x,u\n2,y,u\n")
    refused(declare(path, [feature("a"), feature("b")]), "fewer than two features")


def site(name: str, text: str, folder: Path, features: list[dict[str, Any]]) -> Registry:
    path = folder / f"{name}.csv"
    path.write_text(text)
    return load_registry(declare(path, features, site=name))


def test_pooling_is_the_union_with_nulls_in_the_dictionary_order(tmp_path: Path) -> None:
    features = [feature(c) for c in ("a", "b", "c", "d")]
    one = site("one", "id,a,b,c,d\n1,x,u,k,m\n2,y,u,l,m\n", tmp_path, features)
    two = site("two", "id,a,b,c,d\n4,x,v,k,m\n3,x,w,l,m\n", tmp_path, features)
    pooled = concat_registries([one, two], "all")
    assert pooled.site == "all"
    assert [f.column for f in pooled.features] == ["a", "b", "c"]
    assert pooled.frame.rows() == [
        ("1", "x", None, "k"),
        ("2", "y", None, "l"),
        ("3", None, "w", "l"),
        ("4", None, "v", "k"),
    ]
    assert [x.column for x in pooled.left_out] == ["d"]


def test_pooling_one_site_changes_nothing(path: Path) -> None:
    registry = load_registry(declare(path))
    pooled = concat_registries([registry], "here")
    assert pooled.features == registry.features
    assert_frame_equal(pooled.frame, registry.frame)


def test_pooled_sites_may_code_differently_but_not_print_differently(tmp_path: Path) -> None:
    text = "id,a,b\n{0}1,1,u\n{0}2,2,v\n"
    one = site("one", text.format("p"), tmp_path, [feature("a", values={"1": "yes", "2": "no"}), feature("b")])
    two = site("two", text.format("q"), tmp_path, [feature("a", values={"2": "yes", "1": "no"}), feature("b")])
    assert concat_registries([one, two], "all").frame["a"].to_list() == ["yes", "no", "no", "yes"]
    other = site("three", text.format("r"), tmp_path, [feature("a", name="Another"), feature("b")])
    with pytest.raises(UserError, match="'three' declares the feature 'a' differently"):
        concat_registries([one, other], "all")


def test_pooling_refuses_different_features_and_shared_patients(tmp_path: Path) -> None:
    text = "id,a,b,c\n1,x,u,k\n2,y,v,l\n"
    one = site("one", text, tmp_path, [feature("a"), feature("b")])
    two = site("two", text.replace("1,x", "8,x"), tmp_path, [feature("a"), feature("b"), feature("c")])
    with pytest.raises(UserError, match="'one' does not declare the feature 'c'"):
        concat_registries([one, two], "all")
    with pytest.raises(UserError, match="2 patient identifiers stand at more than one"):
        concat_registries([one, one], "all")


def correlated(rows: int) -> Registry:
    values = ["x" if number % 3 else "y" for number in range(rows)]
    frame = pl.DataFrame(
        {"patient": [f"p{number:05d}" for number in range(rows)], "a": values, "b": values}
    ).with_columns(b=pl.when(pl.int_range(rows) % 2 == 0).then(pl.col("b")))
    features = tuple(Feature.model_validate(feature(c)) for c in ("a", "b"))
    return Registry("here", features, frame)


def test_shuffling_keeps_frequencies_and_destroys_relations() -> None:
    registry = correlated(600)
    drawn = shuffle_columns(registry, 20_000, seed=5).frame
    assert drawn.height == drawn["patient"].n_unique() == 20_000
    assert not set(drawn["patient"]) & set(registry.frame["patient"])
    # Four standard deviations: sqrt(p (1 - p) / 20000) < 0.0036.
    assert (drawn["a"] == "y").mean() == pytest.approx((registry.frame["a"] == "y").mean(), abs=0.0145)
    assert drawn["b"].null_count() / 20_000 == pytest.approx(0.5, abs=0.0145)
    both = drawn.filter(pl.col("b").is_not_null())
    chance = (both["a"] == "x").mean() * (both["b"] == "x").mean() + (both["a"] == "y").mean() * (
        both["b"] == "y"
    ).mean()
    assert (both["a"] == both["b"]).mean() == pytest.approx(chance, abs=0.02)


def test_a_shuffle_is_fixed_by_the_seed_and_by_the_column_alone() -> None:
    registry = correlated(100)
    first = shuffle_columns(registry, 300, seed=5).frame
    assert_frame_equal(first, shuffle_columns(registry, 300, seed=5).frame)
    assert not first["a"].equals(shuffle_columns(registry, 300, seed=6).frame["a"])
    turned = Registry("here", registry.features[::-1], registry.frame.select("patient", "b", "a"))
    assert_frame_equal(first, shuffle_columns(turned, 300, seed=5).frame.select(first.columns))
