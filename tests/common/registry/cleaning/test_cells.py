"""Cleaning as `load_registry` does it: order, policies, and what the refusals say."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.registry.config import RegistryConfig
from common.registry.registry import concat_registries, load_registry

SECRET = "Zaphod"
TEXT = """id;lab;sex;dm;insulin;signs;day;hour
p1;<0,5 mg/l;Male;Y;1;1,3;01.03.2024;10:30
p2;1.200,5;MALE;j;;3,1;02.03.2024;
p3;7;female;N;;2;;11:00
p4;?;female;?;;;04.03.2024;23:59:30
"""


def feature(column: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"column": column, "name": column.title(), "section": "S", "kind": kind, **more}


FEATURES = [
    feature("lab", "number", unit="mg/L", clean={"messy": "keep", "thousands": ".", "decimal": ","}),
    feature("sex", "category", values={"Male": "man"}, clean={"ignore_case": True}),
    feature("dm", "category", clean={"yes_no": True}),
    feature(
        "insulin",
        "category",
        values={"1": "given", "0": "not given", "x": "not applicable"},
        clean={"blank": {"where": "dm", "answers": ["Y", "j"], "means": "0", "otherwise": "x"}},
    ),
    feature("signs", "category", values={"1": "fever", "2": "cough", "3": "rash"}, clean={"several": ","}),
    feature("day", "date", clean={"date_format": "%d.%m.%Y", "time": "hour"}),
]


def declare(folder: Path, text: str, features: list[dict[str, Any]], site: str = "here") -> RegistryConfig:
    path = folder / f"{site}.csv"
    path.write_text(text)
    table = {"source": "csv", "path": str(path), "delimiter": ";", "missing": ["?"]}
    words = {"yes": ["yes", "Y", "J"], "no": ["no", "N"]}
    values = {"site": site, "patient": "id", "table": table, "words": words, "features": features}
    return RegistryConfig.model_validate(values)


def test_a_messy_table_is_read_as_declared(tmp_path: Path) -> None:
    assert load_registry(declare(tmp_path, TEXT, FEATURES)).frame.rows() == [
        ("p1", 0.5, "man", "yes", "given", "fever, rash", datetime(2024, 3, 1, 10, 30)),
        ("p2", 1200.5, "man", "yes", "not given", "fever, rash", datetime(2024, 3, 2)),
        ("p3", 7.0, "female", "no", "not applicable", "cough", None),
        ("p4", None, "female", None, None, None, datetime(2024, 3, 4, 23, 59, 30)),
    ]


MESSY = {
    "number": (feature("x", "number"), f"<{SECRET}", "2", "not numbers"),
    "kept number": (feature("x", "number", unit="mg", clean={"messy": "keep"}), f"5 {SECRET}", "5 mg", "not numbers"),
    "date": (feature("x", "date"), "2024-02-30", "2024-02-28", "not dates"),
    "yes or no": (feature("x", "category", clean={"yes_no": True}), SECRET, "J", "not words for yes or no"),
    "codes": (
        feature("x", "category", values={"1": "a"}, clean={"several": ","}),
        f"1,{SECRET}",
        "1",
        "not lists of declared codes",
    ),
}


@pytest.mark.parametrize("name", MESSY)
def test_the_policy_decides_about_what_is_none_of_its_kind(tmp_path: Path, name: str) -> None:
    declared, bad, good, message = MESSY[name]
    text = f"id;x;a;b\np1;{bad};1;1\np2;{good};2;2\np3;{good};2;2\n"
    others = [feature("a", "number"), feature("b", "number")]
    with pytest.raises(UserError, match=f"1 of 3 values of the column 'x' are {message}") as caught:
        load_registry(declare(tmp_path, text, [declared, *others]))
    assert caught.value.remedy and SECRET not in str(caught.value)
    clean = {**declared.get("clean", {}), "messy": "missing"}
    registry = load_registry(declare(tmp_path, text, [{**declared, "clean": clean}, *others]))
    # At most one value is left in x; a unit after a number is none under "missing".
    reason = "all values are missing" if name == "kept number" else "all values that are present are the same"
    assert [x.reason for x in registry.left_out] == [reason]


@pytest.mark.parametrize("clean", [{"time": "hours"}, {"blank": {"where": "hours", "answers": ["1"], "means": "0"}}])
def test_a_column_that_cleaning_needs_must_be_there(tmp_path: Path, clean: dict[str, Any]) -> None:
    features = [feature("day", "date", clean=clean), feature("sex", "category")]
    with pytest.raises(UserError, match="there is no column 'hours'"):
        load_registry(declare(tmp_path, TEXT, features))


def test_sites_may_clean_differently_and_still_be_pooled(tmp_path: Path) -> None:
    first = [feature("a", "number", clean={"decimal": ","}), feature("b", "number")]
    second = [feature("a", "number"), feature("b", "number")]
    registries = [
        load_registry(declare(tmp_path, "id;a;b\np1;1,5;1\np2;2,5;2\n", first, "one")),
        load_registry(declare(tmp_path, "id;a;b\nq1;3.5;1\nq2;4.5;2\n", second, "two")),
    ]
    assert concat_registries(registries, "both").frame["a"].to_list() == [1.5, 2.5, 3.5, 4.5]
