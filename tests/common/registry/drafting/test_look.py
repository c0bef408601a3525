"""What columns are taken for, and why."""

from typing import Any

import polars as pl
import pytest

from common.registry.drafting.look import Seen, look

N = 60


def column(name: str, values: list[Any]) -> Seen:
    return look(name, pl.Series(name, [str(value) for value in values]))


def every(*values: Any) -> list[Any]:
    return [values[n % len(values)] for n in range(N)]


FEATURES = {
    "number": ("map", [60 + n / 2 for n in range(N)], "number", {}),
    "signs": ("crp", ["<5", *range(1, N)], "number", {"messy": "keep"}),
    "signs and commas": ("crp", ["<5", *(f"{n},5" for n in range(N))], "number", {"messy": "keep", "decimal": ","}),
    "units behind": ("crp", [f"{n} mg/L" for n in range(N)], "number", {"messy": "keep"}),
    "thousands": ("plt", [f"{n},250" for n in range(1, N)], "number", {"thousands": ","}),
    "decimal comma": ("lab", [f"{n},5" for n in range(N)], "number", {"decimal": ","}),
    "some are none": ("lab", ["gone", *range(N)], "number", {"messy": "missing"}),
    "codes": ("smoker", every(0, 1), "category", {}),
    "scale": ("nyha", every(1, 2, 3, 4), "category", {}),
    "several": ("signs", every("1,3", "1,2,4", "2"), "category", {}),
    "yes and no": ("dm", every("Yes", "no", "NO"), "category", {"yes_no": True}),
    "words": ("focus", every("lung", "urine"), "category", {}),
    "case": ("focus", every("Lung", "lung", "urine"), "category", {"ignore_case": True}),
    "ISO date": ("day", [f"2024-03-{1 + n % 28:02d}" for n in range(N)], "date", {}),
    "German date": ("day", [f"{1 + n % 28:02d}.03.2024" for n in range(N)], "date", {"date_format": "%d.%m.%Y"}),
    "US date": ("day", [f"03/{1 + n % 28:02d}/2024" for n in range(N)], "date", {"date_format": "%m/%d/%Y"}),
    "digits": ("day", [f"202403{1 + n % 28:02d}" for n in range(N)], "date", {"date_format": "%Y%m%d"}),
    "wrong dates": ("day", ["2024-02-31", *every("2024-03-01", "2024-03-02")], "date", {"messy": "missing"}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_recognised_with_what_cleans_it(name: str) -> None:
    label, values, kind, clean = FEATURES[name]
    seen = column(label, values)
    assert (seen.kind, seen.clean) == (kind, clean)
    assert seen.why


NEVER = {
    "empty": ("x", [], "no values"),
    "constant": ("ward", ["ICU"] * N, "the same value"),
    "surname": ("Surname", every("a", "b"), "'surname' in the name"),
    "birth": ("date_of_birth", every("1960-01-01", "1961-01-01"), "'birth' in the name"),
    "name": ("Name", every("a", "b"), "'name' in the name"),
    "key": ("stay_id", every(1, 2, 3), "an identifier"),
    "prediction": ("pred_death", every(0.1, 0.2), "'pred' in the name"),
    "remark": ("remarks", every("a", "b"), "free text"),
    "e-mail": ("contact", every("a@b.org", "c@d.org"), "e-mail"),
    "hour": ("arrived", every("10:30", "9:15"), "times of day"),
    "hour in a spreadsheet": ("arrived", every("1899-12-31 10:30:00", "1899-12-31 09:15:00"), "times of day"),
    "number plate": ("reference", [10000 + n for n in range(N)], "same length"),
    "long": ("finding", every("the patient was found on the floor", "the patient came walking by herself"), "long"),
    "all different": ("code", [f"F{n}x" for n in range(N)], "no number"),
    "mostly different": ("cause", [f"c{n % 40}" for n in range(N)], "mostly different"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_identifies_or_tells_too_much_is_not_used(name: str) -> None:
    label, values, why = NEVER[name]
    seen = column(label, values)
    assert seen.kind is None and why in seen.why[0]


EDITS = {
    "day or month": ("day", every("01/02/2024", "03/04/2024"), "cannot be told apart"),
    "comma": ("plt", [f"{n},250" for n in range(1, N)], "could be a decimal sign"),
    "probability": ("expd", [0.01 + n / 100 for n in range(N)], "probability"),
    "outcome": ("died_28d", every("Y", "N"), "known later?"),
    "many": ("drug", [f"d{n % 35}" for n in range(400)], "too many"),
    "codes in letters": ("sex", every("m", "w"), "codes?"),
    "unknown word": ("cause", every("stones", "gout", "unbekannt"), "unknown counts as missing"),
    "unknown": ("dm", every("Y", "N", "U"), "unknown counts as missing"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_a_person_has_to_decide_is_marked(name: str) -> None:
    label, values, why = EDITS[name]
    seen = column(label, values)
    assert any(reason.startswith("EDIT: ") and why in reason for reason in seen.why)


def test_outcomes_and_unknown_marks_are_declared() -> None:
    assert column("died_28d", every("Y", "N")).outcome
    assert column("dm", every("Y", "N", "U")).missing == ("U",)
    assert column("crp", [f"{n} mg/L" for n in range(N)]).unit == "mg/L"
    assert column("nyha", every(1, 2, 3)).ordinal
