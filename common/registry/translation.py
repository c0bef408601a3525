"""A registry in another language: its headers and values by a declared dictionary, before anything else is read."""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import polars as pl
from pydantic import model_validator

from common.errors import UserError
from common.registry.header import ROW
from common.strict import Strict

HEADER = "#header"
"""As `column` of a dictionary file: this line is about a header."""
DICTIONARY = ["column", "from", "to"]
"""The first line of a dictionary file."""


class Translate(Strict):
    """The `[translate]` table. Every other setting of the site file speaks of headers and values as translated."""

    file: str = ""
    """A CSV file with the columns `column`, `from`, `to`. `column` is `#header` for a header, empty for a value in
    any column, else the column that the value stands in, by its own name or the translated one."""
    headers: dict[str, str] = {}
    values: dict[str, str] = {}
    """In every column; only whole cells are replaced."""
    columns: dict[str, dict[str, str]] = {}
    """Column -> its own values; they go before `values`."""
    other_headers: Literal["keep", "refuse"] = "keep"
    """What becomes of a table with a header that the dictionary does not know."""
    other_values: Literal["keep", "refuse"] = "keep"
    """What becomes of a category with a value that neither the dictionary nor the feature knows."""

    @model_validator(mode="after")
    def headers_stay_apart(self) -> "Translate":
        names = list(self.headers.values())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two headers are translated to {twice[0]!r}; give each its own name")
        return self

    def words(self, column: str) -> dict[str, str]:
        """The values of a column, named as translated: written -> translated."""
        own = {h: c for h, c in self.columns.items() if self.headers.get(h, h) == column}
        merged = dict(self.values)
        for values in own.values():
            merged |= values
        return {composed(key): value for key, value in merged.items()}


def composed(text: str) -> str:
    """One form for what looks the same: some systems write a syllable or an umlaut as several characters."""
    return normalize("NFC", text.strip())


def with_dictionary(translate: Translate, path: Path) -> Translate:
    """The declaration with its dictionary file's lines; what stands in the site file itself wins.

    Raises:
        UserError: the file is missing, not UTF-8, or not a dictionary.
    """
    headers, values, columns = dict[str, str](), dict[str, str](), dict[str, dict[str, str]]()
    for number, (column, source, target) in enumerate(dictionary_lines(path), start=2):
        into = headers if column == HEADER else columns.setdefault(column, {}) if column else values
        if into.get(source, target) != target:
            raise UserError(f"{path}: line {number} translates an entry a second time.", "Remove one of the two.")
        into[source] = target
    merged = {
        "headers": headers | translate.headers,
        "values": values | translate.values,
        "columns": {c: columns.get(c, {}) | translate.columns.get(c, {}) for c in columns | translate.columns},
    }
    try:
        return Translate.model_validate(translate.model_dump() | merged | {"file": ""})
    except ValueError:
        raise UserError(f"{path}: two headers are translated to one name.", "Give each its own name.") from None


def dictionary_lines(path: Path) -> list[tuple[str, str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(line)]
    except OSError:
        raise UserError(f"{path}: this dictionary cannot be read.", "Correct translate.file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this dictionary is not UTF-8 text.", "Save it as CSV in UTF-8.") from None
    if not lines or lines[0] != DICTIONARY:
        raise UserError(f"{path}: this is no dictionary.", f"Its first line is {','.join(DICTIONARY)}.")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(DICTIONARY) or not line[1]:
            raise UserError(f"{path}: line {number} is not column,from,to.", "Correct it; `from` may not be empty.")
    return [(line[0], line[1], line[2]) for line in lines[1:]]


def translate_headers(rows: pl.LazyFrame, translate: Translate, place: str) -> pl.LazyFrame:
    """The table under its translated names.

    Raises:
        UserError: a header that the dictionary does not know, where that is refused; two columns of one name.
    """
    headers = {composed(key): value for key, value in translate.headers.items()}
    names = [composed(name) for name in rows.collect_schema().names()]
    unknown = [name for name in names if name not in headers and name not in headers.values() and name != ROW]
    if unknown and translate.other_headers == "refuse":
        raise UserError(
            f"{place}: the dictionary has no word for the name of column {names.index(unknown[0])} "
            f"({len(unknown)} such columns).",
            "Add it to the dictionary, or set translate.other_headers = 'keep'.",
        )
    translated = [headers.get(name, name) for name in names]
    twice = sorted({name for name in translated if translated.count(name) > 1})
    if twice:
        raise UserError(f"{place}: two columns are called {twice[0]!r} once translated.", "Translate one differently.")
    return rows.rename(dict(zip(rows.collect_schema().names(), translated, strict=True)))


def translate_cells(column: str, words: Mapping[str, str]) -> pl.Expr:
    """The column with whole cells replaced."""
    if not words:
        return pl.col(column)
    return pl.col(column).str.normalize("NFC").replace(list(words), list(words.values()))


def check_translated(cells: pl.Series, known: Collection[str], place: str) -> None:
    """Refuse a category with values that nobody translated.

    Args:
        cells: translated, missing ones null; named after the column.
        known: results of the dictionary, and what the feature itself declares.

    Raises:
        UserError: there are others.
    """
    other = int((~cells.drop_nulls().is_in(list(known))).sum())
    if other:
        raise UserError(
            f"{place}: the dictionary has no word for {other} of {cells.count()} values of the column {cells.name!r}.",
            "Add them to the dictionary or to the feature's values, or set translate.other_values = 'keep'.",
        )
