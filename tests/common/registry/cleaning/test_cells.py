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


def test_a_flag_says_that_another_column_does_not_apply(tmp_path: Path) -> None:
    flag = {"where": "hd", "answers": ["N"]}
    features = [
        feature("kt", "number", clean={"not_applicable": flag}),
        feature("access", "category", values={"-": "none"}, clean={"not_applicable": {**flag, "means": "-"}}),
        feature("x", "number"),
    ]
    text = "id;hd;kt;access;x\na;Y;1.2;fistula;1\nb;N;9.9;catheter;2\nc;;1.4;;3\nd;N;;;4\n"
    frame = load_registry(declare(tmp_path, text, features)).frame
    assert frame["kt"].to_list() == [1.2, None, 1.4, None]
    assert frame["access"].to_list() == ["fistula", "none", None, "none"]


def test_numbers_in_another_unit_are_converted(tmp_path: Path) -> None:
    def crea(**clean: Any) -> list[dict[str, Any]]:
        shared = feature("crea", "number", unit="umol/L", clean={"messy": "keep", **clean})
        return [shared, feature("temp", "number", unit="C", clean={"convert": {"factor": 0.5, "offset": -16.0}})]

    text = "id;crea;temp\na;1 mg/dL;100\nb;<2;98\nc;0.5;96\n"
    config = declare(tmp_path, text, crea(convert={"unit": "mg/dL", "factor": 88.4}))
    assert load_registry(config).frame.rows() == [("a", 88.4, 34.0), ("b", 176.8, 33.0), ("c", 44.2, 32.0)]
    other = text.replace("1 mg/dL", "90 umol/L")
    with pytest.raises(UserError, match="1 with text behind a number"):
        load_registry(declare(tmp_path, other, crea(convert={"unit": "mg/dL", "factor": 88.4})))


BOUNDS = {
    "number": (feature("x", "number"), {"least": 0, "most": 120}, ["0", "120", "999", "-1"], [0.0, 120.0, None, None]),
    "date": (
        feature("x", "date"),
        {"earliest": "2000-01-01", "latest": "2024-12-31"},
        ["2000-01-01", "2024-12-31 23:59", "1024-03-01", "2204-03-01"],
        [datetime(2000, 1, 1), datetime(2024, 12, 31, 23, 59), None, None],
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_impossible_values_follow_the_policy(tmp_path: Path, name: str) -> None:
    declared, bounds, cells, kept = BOUNDS[name]
    text = "id;x;y\n" + "".join(f"{n};{cell};{n}\n" for n, cell in enumerate(cells))
    with pytest.raises(UserError, match="2 of 4 values of the column 'x' lie outside") as caught:
        load_registry(declare(tmp_path, text, [{**declared, "clean": bounds}, feature("y", "number")]))
    assert "999" not in str(caught.value) and "1024" not in str(caught.value)
    dropped = [{**declared, "clean": {**bounds, "messy": "missing"}}, feature("y", "number")]
    assert load_registry(declare(tmp_path, text, dropped)).frame["x"].to_list() == kept


@pytest.mark.parametrize(
    ("policy", "expected"), [("keep", ["a", "b", SECRET, "a"]), ("missing", ["a", "b", None, "a"])]
)
def test_a_category_outside_its_dictionary_follows_the_policy(tmp_path: Path, policy: str, expected: list) -> None:
    text = f"id;x;y\n1;1;1\n2;2;2\n3;{SECRET};3\n4;a;4\n"
    declared = feature("x", "category", values={"1": "a", "2": "b"}, clean={"unlisted": policy})
    assert load_registry(declare(tmp_path, text, [declared, feature("y", "number")])).frame["x"].to_list() == expected
    declared["clean"] = {"unlisted": "refuse"}
    with pytest.raises(UserError, match="1 of 4 values of the column 'x' are not in its `values`") as caught:
        load_registry(declare(tmp_path, text, [declared, feature("y", "number")]))
    assert SECRET not in str(caught.value)


def test_a_refusal_says_what_the_values_look_like(tmp_path: Path) -> None:
    text = f"id;x;d\n1;<3;2024-02-31\n2;1,5;01.03.2024\n3;5 mg;{SECRET}\n4;{SECRET};20240301\n5;6;2024-03-01\n"
    numbers = [feature("x", "number"), feature("d", "category")]
    with pytest.raises(
        UserError, match="1 with a comparison sign, 1 with a comma, 1 with text behind a number, 1 other"
    ):
        load_registry(declare(tmp_path, text, numbers))
    dates = [feature("x", "category"), feature("d", "date")]
    with pytest.raises(
        UserError, match="1 that no calendar has, 1 with the year last, 1 of digits alone, 1 other text"
    ):
        load_registry(declare(tmp_path, text, dates))
