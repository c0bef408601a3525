"""What may be declared about cleaning, and what excludes what."""

from typing import Any

import pytest
from pydantic import ValidationError

from common.registry.cleaning.declared import Words
from common.registry.config import Feature, RegistryConfig


def feature(kind: str, values: dict[str, str] | None = None, **clean: Any) -> dict[str, Any]:
    return {"column": "x", "name": "X", "section": "S", "kind": kind, "values": values or {}, "clean": clean}


GOOD = {
    "number": feature("number", messy="keep", thousands=".", decimal=",", units=["mg/l"]),
    "case": feature("category", {"yes": "Yes"}, ignore_case=True),
    "yes and no": feature("category", yes_no=True, messy="missing"),
    "codes": feature("category", {"1": "a"}, several=",", messy="keep"),
    "date": feature("date", date_format="%d.%m.%Y", time="hour", messy="missing"),
    "another unit": feature("number", convert={"unit": "mg/dL", "factor": 88.4}, least=0, most=5000),
    "days": feature("date", earliest="2000-01-01", latest="2000-01-01"),
    "codes alone": feature("category", {"1": "a"}, unlisted="refuse"),
    "flag": feature("date", not_applicable={"where": "y", "answers": ["1"]}),
    "tick box": feature("text", blank={"where": "y", "answers": ["1"], "means": "no"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_belongs_together_is_taken(name: str) -> None:
    declared = Feature.model_validate(GOOD[name])
    assert declared.clean.model_dump(exclude_defaults=True)
    assert Feature.model_validate_json(declared.model_dump_json()) == declared


BAD = {
    "thousands of a date": (feature("date", thousands=","), "'x' is a date, to which clean.thousands does not apply"),
    "time of a number": (feature("number", time="t"), "clean.time does not apply"),
    "policy of a text": (feature("text", messy="missing"), "clean.messy does not apply"),
    "one sign, two meanings": (feature("number", thousands=",", decimal=","), "between thousands and before decimals"),
    "the default point": (feature("number", thousands="."), "between thousands and before decimals"),
    "keep a date": (feature("date", messy="keep"), "none can be kept"),
    "half a date": (feature("date", date_format="%m/%Y"), "without %d, %m or %Y"),
    "yes or codes": (feature("category", {"1": "a"}, yes_no=True, several=","), "keep one"),
    "yes or case": (feature("category", yes_no=True, ignore_case=True), "keep one"),
    "codes of what": (feature("category", several=","), "list them in `values`"),
    "policy about nothing": (feature("category", messy="missing"), "without yes_no or several"),
    "keys that fall together": (feature("category", {"A": "a", "a": "b"}, ignore_case=True), "differ only in case"),
    "a long separator": (feature("category", {"1": "a"}, several=", "), "at most 1 character"),
    "no answers": (feature("number", blank={"where": "y", "answers": [], "means": "0"}), "at least 1 item"),
    "no factor": (feature("number", convert={"factor": 0}), "factor is 0"),
    "empty range": (feature("number", least=3, most=3), "not below clean.most"),
    "days backwards": (feature("date", earliest="2000-01-02", latest="2000-01-01"), "after clean.latest"),
    "range of words": (feature("category", most=3), "clean.most does not apply"),
    "unlisted where": (feature("category", unlisted="refuse"), "checks against `values` alone"),
    "unlisted words": (feature("category", {"1": "a"}, several=",", unlisted="missing"), "see clean.messy"),
    "a flag that says nothing": (feature("text", not_applicable={"where": "y", "answers": []}), "at least 1 item"),
    "unknown policy": (feature("number", messy="ignore"), "'refuse', 'missing' or 'keep'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_excludes_each_other_is_refused(name: str) -> None:
    values, message = BAD[name]
    with pytest.raises(ValidationError, match=message):
        Feature.model_validate(values)


def test_a_word_is_yes_or_no() -> None:
    with pytest.raises(ValidationError, match="'y' means both"):
        Words(yes=("Y", "1"), no=("y",))


def test_yes_and_no_need_their_words() -> None:
    other = {"column": "y", "name": "Y", "section": "S", "kind": "number"}
    values = {"site": "a", "patient": "id", "table": {"source": "csv", "path": "t.csv"}}
    declared = {**values, "features": [feature("category", yes_no=True), other]}
    with pytest.raises(ValidationError, match=r"give a \[words\] table"):
        RegistryConfig.model_validate(declared)
    assert RegistryConfig.model_validate({**declared, "words": {"yes": ["ja"], "no": ["nein"]}}).words.yes == ("ja",)
