"""What a column seems to be, from its name and its values. Nothing here tells a value, only what it looks like."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from common.registry.cleaning.date_time import DATE_FORMATS
from common.registry.cleaning.declared import Clean
from common.registry.cleaning.numbers import plain_number
from common.registry.drafting import names

MARKS = ("NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "nan", "NaN", ".", "?", "-", "--", "k.A.", "k. A.", "n.b.")
"""What tables commonly write for "not recorded"; no numbers, since -9 may be a measurement."""
YES = ("yes", "y", "true", "t", "ja", "j", "oui", "si")
NO = ("no", "n", "false", "f", "nein", "non")
UNKNOWN = ("u", "unk", "unknown", "unbekannt", "nk", "n/k")
OTHER_DATES = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y%m%d")
DECIMAL_COMMA = {"decimal": ","}
NUMBERS: tuple[dict[str, str], ...] = (
    {},
    {"thousands": ","},
    DECIMAL_COMMA,
    {"decimal": ",", "thousands": "."},
    {"messy": "keep"},
    {"messy": "keep", "thousands": ","},
    {"messy": "keep", "decimal": ","},
    {"messy": "keep", "decimal": ",", "thousands": "."},
)
"""Ways of writing numbers, tried in this order."""
MOST = 0.9
"""A column is of a kind if this share of its values is; the rest is named in the comment."""
FEW_CODES = 6
"""Whole numbers with at most so many different values are taken for codes or a scale."""
MANY_CATEGORIES = 30
ENOUGH = 20
"""Fewer values than this say nothing about whether they are all different by chance."""


@dataclass(frozen=True)
class Seen:
    """One column: a feature of `kind`, or one for `never` (`kind` None); `why` is for a person to judge."""

    column: str
    kind: str | None
    why: list[str]
    name: str = ""
    unit: str = ""
    ordinal: bool = False
    outcome: bool = False
    clean: dict[str, str | bool] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def look(column: str, values: pl.Series) -> Seen:
    """Judge a column by its name and its values: text without missing ones."""
    name, unit = names.name_and_unit(column)
    reason = left_out(column, values)
    if reason:
        return Seen(column, None, [reason])
    seen = as_date(column, values) or as_codes(column, values) or as_number(column, values, unit)
    seen = seen or as_words(column, values)
    why = list(seen.why)
    if seen.unit and not unit:
        unit = seen.unit
    elif unit:
        why.append(f"unit {unit!r} from the name")
    word = names.outcome_word(column)
    if word and seen.kind is not None:
        why.append(f"EDIT: {word!r} in the name: known later? then it may give answers away; else remove `known`")
    return Seen(column, seen.kind, why, name, unit, seen.ordinal, bool(word), seen.clean, seen.missing)


def left_out(column: str, values: pl.Series) -> str:
    """Why a column is better not used, or ""."""
    different = values.n_unique()
    if different == 0:
        return "no values"
    if different == 1:
        return "the same value in every row that has one"
    person = names.says(column, names.PERSON)
    if person or words_are_a_name(column):
        return f"{person or 'name'!r} in the name: it identifies people"
    if names.is_key(column):
        return "the name says that it is an identifier"
    prediction = names.says(column, names.PREDICTION)
    if prediction:
        return f"{prediction!r} in the name: computed from other columns, perhaps from the outcome"
    if names.says(column, names.FREE_TEXT):
        return "the name says free text, which may hold names and the answer"
    if values.str.contains(r"^\S+@\S+\.\S+$").mean() > MOST:  # type: ignore[operator]
        return "its values look like e-mail addresses"
    if values.str.contains(r"^(1899-12-3[01] )?\d{1,2}:\d\d(:\d\d)?$").all():
        return "times of day; with a date of the same event, declare that date's clean.time instead"
    lengths = values.str.len_chars()
    digits = values.str.contains(r"^\d+$").all() and lengths.min() == lengths.max()
    all_different = different == values.len() >= ENOUGH
    if all_different and digits and lengths[0] >= 5 and date_format(values) is None:
        return "every value is another number of the same length: perhaps an identifier"
    if values.str.split(" ").list.len().mean() >= 5 or lengths.mean() >= 40:  # type: ignore[operator]
        return "long texts, which may hold names and the answer"
    if all_different and not is_written(values):
        return "every value is different and no number: perhaps an identifier"
    if different > MANY_CATEGORIES and different > values.len() / 4 and not is_written(values):
        return "texts that are mostly different: perhaps free text"
    return ""


def is_written(values: pl.Series) -> bool:
    """Whether most values are dates, numbers of any writing or numbers with their unit."""
    if date_format(values) is not None:
        return True
    unit = unit_behind(values)
    return any(share(values, plain(values, clean, unit)) >= MOST for clean in NUMBERS)


def words_are_a_name(column: str) -> bool:
    return names.words(column) in (["name"], ["patient", "name"], ["first", "name"], ["last", "name"], ["full", "name"])


def share(values: pl.Series, parsed: pl.Series) -> float:
    return parsed.count() / values.len()


def dates(values: pl.Series, form: str) -> pl.Series:
    forms = DATE_FORMATS if form == "" else (form, f"{form} %H:%M", f"{form} %H:%M:%S")
    attempts = [pl.first().str.to_datetime(f, strict=False, time_unit="us") for f in forms]
    return values.to_frame().select(pl.coalesce(attempts)).to_series()


def date_format(values: pl.Series) -> str | None:
    """The first way of writing dates that most values have ("" is ISO), or None."""
    digits = values.str.contains(r"^(19|20)\d{6}$").mean() >= MOST  # type: ignore[operator]
    forms = OTHER_DATES[-1:] if digits else ("", *OTHER_DATES[:-1])
    found = [(share(values, dates(values, form)), -place, form) for place, form in enumerate(forms)]
    best = max(found)
    return best[2] if best[0] >= MOST else None


def as_date(column: str, values: pl.Series) -> Seen | None:
    form = date_format(values)
    if form is None:
        return None
    bad = values.len() - dates(values, form).count()
    clean: dict[str, str | bool] = {"date_format": form} if form else {}
    why = ["dates"]
    if form in ("%d/%m/%Y", "%m/%d/%Y") and min(share(values, dates(values, f)) for f in OTHER_DATES[1:3]) == 1:
        why.append("EDIT: day and month cannot be told apart; is it day/month/year?")
    if bad:
        clean["messy"] = "missing"
        why.append(f"EDIT: {bad} of {values.len()} values are none and would be dropped")
    return Seen(column, "date", why, clean=clean)


def as_codes(column: str, values: pl.Series) -> Seen | None:
    """Several codes in one cell, such as 1,3,4."""
    whole = values.str.contains(r"^\w{1,2}(?:[,;|+] ?\w{1,2})*$").all()
    if not whole or not values.str.contains(r"^\w+(?:[,;|+] ?\w+){2,}$").any():
        return None
    why = 'EDIT: several codes in a cell? declare clean = { several = "," } and every code in values; else use never'
    return Seen(column, "category", [why])


def plain(values: pl.Series, clean: Mapping[str, str | bool], unit: str = "") -> pl.Series:
    number = plain_number(pl.first(), Clean.model_validate(clean), unit).cast(pl.Float64, strict=False)
    return values.to_frame().select(pl.when(number.is_finite()).then(number)).to_series()


def unit_behind(values: pl.Series) -> str:
    """A known unit that stands behind numbers in the cells, or ""."""
    behind = values.str.extract(r"\d\s*([A-Za-z%][A-Za-z%/0-9]*)$").drop_nulls()
    known = {unit.lower(): unit for unit in names.UNITS.values()}
    found = behind.str.to_lowercase().value_counts(sort=True).get_column(behind.name)
    return next((known[text] for text in found.to_list() if text in known), "")


def as_number(column: str, values: pl.Series, unit: str) -> Seen | None:
    unit = unit or unit_behind(values)
    shares = [share(values, plain(values, clean, unit)) for clean in NUMBERS]
    best = shares.index(max(shares))
    if shares[best] < MOST:
        return None
    parsed, clean = plain(values, NUMBERS[best], unit), dict[str, str | bool](NUMBERS[best])
    different = parsed.drop_nulls().n_unique()
    if best == 0 and shares[0] == 1 and different <= FEW_CODES and (parsed == parsed.round(0)).all():
        if different == 2:
            told = 'EDIT: two codes; say in values what they mean, for example values = { 0 = "no", 1 = "yes" }'
            return Seen(column, "category", [told])
        told = f"EDIT: {different} different whole numbers: a scale? codes (say in values what they mean)? a count?"
        return Seen(column, "category", [told], ordinal=True)
    why = ["numbers"]
    if ((parsed > 0) & (parsed < 1)).all() and different > MANY_CATEGORIES:
        why.append("EDIT: all between 0 and 1: a probability computed from other columns? then it belongs in never")
    if clean.get("thousands") == "," and share(values, plain(values, DECIMAL_COMMA)) == 1:
        why.append('EDIT: the comma could be a decimal sign; then decimal = "," and no thousands')
    if "decimal" in clean:
        why.append("with a decimal comma")
    if "messy" in clean:
        odd = values.len() - plain(values, {**clean, "messy": "refuse"}).count()
        why.append(f'EDIT: {odd} of {values.len()} have comparison signs or units; "missing" drops what "keep" reads')
    if shares[best] < 1:
        bad = values.len() - parsed.count()
        clean["messy"] = "missing"
        why.append(f"EDIT: {bad} are no numbers and would be dropped")
    return Seen(column, "number", why, unit=unit, clean=clean)


def as_words(column: str, values: pl.Series) -> Seen:
    lower = values.str.to_lowercase()
    told = lower.filter(~lower.is_in(UNKNOWN))
    yes_no = told.len() > 0 and bool(told.is_in([*YES, *NO]).all())
    # One letter means unknown beside yes and no; elsewhere it may be a code.
    unknown = values.filter(lower.is_in(UNKNOWN) & ((lower.str.len_chars() > 2) | yes_no)).unique().sort()
    missing = tuple(unknown.to_list())
    noted = ["EDIT: what says unknown counts as missing"] if missing else []
    if yes_no:
        return Seen(column, "category", ["yes and no, see [words]", *noted], clean={"yes_no": True}, missing=missing)
    lower = lower.filter(~values.is_in(missing))
    different, merged = values.n_unique() - len(missing), lower.n_unique()
    why = [f"{different} different texts", *noted]
    clean: dict[str, str | bool] = {}
    if merged < different:
        clean["ignore_case"] = True
        why.append(f"EDIT: {merged} if upper and lower case are one; values decides how they are printed")
    if values.str.len_chars().max() <= 2:  # type: ignore[operator]
        why.append('EDIT: codes? say in values what they mean, for example values = { m = "male", f = "female" }')
    if merged > MANY_CATEGORIES:
        why.append("EDIT: too many to choose from; group them with values, or move the column to never")
    return Seen(column, "category", why, clean=clean, missing=missing)
