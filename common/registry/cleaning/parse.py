"""One column of text as its feature's kind and its `clean` say."""

import math
from collections.abc import Iterable
from datetime import date

import polars as pl

from common.errors import UserError
from common.registry.cleaning.date_time import date_formats, date_shapes
from common.registry.cleaning.declared import Words
from common.registry.cleaning.numbers import number_shapes, plain_number
from common.registry.cleaning.several import several_codes
from common.registry.cleaning.words import one_case, yes_no
from common.registry.config import Feature


def parse(text: pl.Series, feature: Feature, source: str, words: Words) -> pl.Series:
    """Numbers as Float64, dates as Datetime, categories and texts as text (as printed); missing is null.

    Args:
        text: the cells, marks for missing values already null.

    Raises:
        UserError: values that are not of their kind, not possible or not listed, where that is refused.
    """
    if feature.kind == "number":
        return parse_numbers(text, feature, source)
    if feature.kind == "date":
        return parse_dates(text, feature, source)
    return parse_words(text, feature, source, words)


def parse_numbers(text: pl.Series, feature: Feature, source: str) -> pl.Series:
    clean, convert = feature.clean, feature.clean.convert
    column = plain_number(pl.first(), clean, convert.unit if convert else feature.unit).cast(pl.Float64, strict=False)
    if convert is not None:
        column = column * convert.factor + convert.offset
    # "nan" and "inf" parse as floats but nobody measured them.
    parsed = text.to_frame().select(pl.when(column.is_finite()).then(column)).to_series()
    remedy = "Write decimals with a point and units nowhere, or declare what stands there in the feature's clean"
    parsed = checked(text, parsed, feature, source, "numbers", remedy, number_shapes(text, parsed))
    least = -math.inf if clean.least is None else clean.least
    most = math.inf if clean.most is None else clean.most
    return within(parsed, pl.first().is_between(least, most), feature, source)


def parse_dates(text: pl.Series, feature: Feature, source: str) -> pl.Series:
    clean = feature.clean
    attempts = [pl.first().str.to_datetime(form, strict=False, time_unit="us") for form in date_formats(clean)]
    parsed = text.to_frame().select(pl.coalesce(attempts)).to_series()
    remedy = "Write dates as YYYY-MM-DD or YYYY-MM-DD HH:MM, or declare clean.date_format"
    parsed = checked(text, parsed, feature, source, "dates", remedy, date_shapes(text, parsed))
    possible = pl.first().dt.date().is_between(clean.earliest or date.min, clean.latest or date.max)
    return within(parsed, possible, feature, source)


def parse_words(text: pl.Series, feature: Feature, source: str, words: Words) -> pl.Series:
    clean = feature.clean
    if clean.yes_no:
        known = text.to_frame().select(yes_no(pl.first(), clean, words)).to_series()
        return checked(text, known, feature, source, "words for yes or no", "Add the words to [words]")
    if clean.several:
        known = text.to_frame().select(several_codes(pl.first(), clean, feature.values)).to_series()
        return checked(text, known, feature, source, "lists of declared codes", "Add the codes to the feature's values")
    values = feature.values
    if clean.ignore_case:
        text = text.to_frame().select(one_case(pl.first())).to_series()
        values = {key.lower(): value for key, value in values.items()}
    if clean.unlisted != "keep":
        listed = text.is_in([*values, *values.values()])
        bad = int((~listed).sum())
        if bad and clean.unlisted == "refuse":
            raise UserError(
                f"{source}: {bad} of {text.count()} values of the column {feature.column!r} are not in its `values`.",
                "Add them there, or set clean.unlisted to 'missing' or 'keep'.",
            )
        text = text.set(~listed, None)
    return text.replace(values) if values else text


def checked(
    text: pl.Series,
    parsed: pl.Series,
    feature: Feature,
    source: str,
    kind: str,
    remedy: str,
    shapes: Iterable[tuple[str, int]] = (),
) -> pl.Series:
    """`parsed`, once nothing is lost in it that the declared policy does not let go.

    Args:
        shapes: what the lost values look like and how many do; says nothing of what they are.

    Raises:
        UserError: values that are not of their kind, and `clean.messy` is not "missing".
    """
    bad = int((text.is_not_null() & parsed.is_null()).sum())
    if bad and feature.clean.messy != "missing":
        told = ", ".join(f"{count} {shape}" for shape, count in shapes)
        raise UserError(
            f"{source}: {bad} of {text.count()} values of the column {feature.column!r} are not {kind}"
            f"{f' ({told})' if told else ''}.",
            f"{remedy}, add marks for missing values to table.missing, or declare another kind.",
        )
    return parsed


def within(parsed: pl.Series, possible: pl.Expr, feature: Feature, source: str) -> pl.Series:
    """`parsed` without what `clean` says is impossible.

    Raises:
        UserError: there is some, and `clean.messy` is not "missing".
    """
    kept = parsed.to_frame().select(pl.when(possible).then(pl.first())).to_series()
    bad = parsed.count() - kept.count()
    if bad and feature.clean.messy != "missing":
        raise UserError(
            f"{source}: {bad} of {parsed.count()} values of the column {feature.column!r} lie outside what its clean "
            "says is possible.",
            "Correct them, widen the bounds, or set clean.messy = 'missing'.",
        )
    return kept
