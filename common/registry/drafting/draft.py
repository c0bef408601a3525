"""A first site file, written by looking at a table, for a person to correct. It holds no patient's value."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.delimited import DELIMITERS, likely_encoding
from common.registry.drafting import names
from common.registry.drafting.look import MARKS, NO, YES, Seen, look
from common.registry.drafting.together import note_relations
from common.registry.readers import named_parse_faults, read_table

SOURCES = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".xlsx", ".xls", ".xlsb", ".xlsm", ".ods"), "excel"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "sql"),
}
HEAD = """\
# A first draft, written by looking at the table; it stays at the hospital. A person corrects it: look at every line
# marked EDIT, put features under sections, and judge for each whether it tells the answer to a question.
"""


def describe(place: str, sheet: str = "", query: str = "") -> Table:
    """The table that a path or a `postgresql://` address means, by the ending of its name.

    Raises:
        UserError: an ending that says nothing.
    """
    if place.startswith(("postgresql://", "postgres://")):
        return Table(source="sql", server=place, query=query)
    path = Path(place).resolve()
    source = SOURCES.get(path.suffix.lower())
    if source is None:
        endings = ", ".join(SOURCES)
        raise UserError(f"{path}: the ending does not tell what kind of table this is.", f"Use one of {endings}.")
    values = {"source": source, "path": str(path), "sheet": sheet, "query": query}
    if source == "csv" and path.is_file():
        values["encoding"] = likely_encoding(path)
        values["delimiter"] = likely_delimiter(path, values["encoding"])
    return Table.model_validate(values)


def likely_delimiter(path: Path, encoding: str) -> str:
    """The sign that stands most often in the first line; the reader refuses a file where this guess is wrong."""
    with path.open(encoding=encoding, errors="replace") as file:
        line = file.readline()
    return max(DELIMITERS, key=line.count)


def draft(table: Table, site: str, folder: Path) -> tuple[str, list[Seen]]:
    """The site file's text, and what each column was taken for.

    Args:
        folder: where the file will be; the table's path is written relative to it.

    Raises:
        UserError: the table is not readable, has no rows, no header, or fewer than two columns to use.
    """
    with named_parse_faults(table.place):
        rows = read_table(table).drop(ROW).with_columns(pl.all().str.strip_chars()).collect()
    check_header(rows, table.place)
    marks = [mark for mark in MARKS if any((rows[column] == mark).any() for column in rows.columns)]
    kept = rows.with_columns(pl.when(~pl.all().is_in(["", *marks])).then(pl.all()))
    patient = patient_column(kept)
    seen = [look(column, kept[column].drop_nulls()) for column in kept.columns if column != patient]
    seen = note_relations(with_times(renamed(seen), kept), kept)
    features = [column for column in seen if column.kind is not None]
    if len(features) < 2:
        raise UserError(
            f"{table.place}: fewer than two columns seem usable as features.",
            "Check that this is the registry's table and that its first line names the columns.",
        )
    text = "\n".join(
        [
            HEAD,
            f"site = {quoted(site)}  # EDIT: this hospital's name in the study, and the file's",
            *patient_lines(patient, kept),
            "",
            "features = [",
            *(line for column in features for line in feature_lines(column)),
            "]",
            "",
            "never = [",
            *(line for column in seen if column.kind is None for line in never_lines(column, kept.columns, seen)),
            "]",
            "",
            *words_lines(features, kept),
            *table_lines(table, marks, folder),
            "",
        ]
    )
    return text, seen


def check_header(rows: pl.DataFrame, place: str) -> None:
    if rows.is_empty():
        raise UserError(f"{place}: the table has no rows.", "Give a table with patients in it.")
    values = [name for name in rows.columns if re.fullmatch(r"[-+<>]?[\d.,:/ -]*", name)]
    if 2 * len(values) > len(rows.columns):
        # Not one of them is quoted: without a header they are the first patient's.
        raise UserError(f"{place}: the first line seems to hold values, not names.", "Put the column names there.")


def patient_column(rows: pl.DataFrame) -> str | None:
    """The column whose name says patient most surely; of two, the one with more different values."""
    ranked = [
        (rank, -rows[column].n_unique(), column)
        for column in rows.columns
        if (rank := names.patient_rank(column)) is not None
    ]
    return min(ranked)[2] if ranked else None


def renamed(seen: Sequence[Seen]) -> list[Seen]:
    """A name that stands before already, or none, becomes the column's own."""
    shown = [column.name if column.kind is not None else "" for column in seen]
    return [replace(c, name=c.column) if not c.name or c.name in shown[:n] else c for n, c in enumerate(seen)]


def with_times(seen: Sequence[Seen], rows: pl.DataFrame) -> list[Seen]:
    """A date whose next column is a time of day of a similar name takes it along."""
    out = list(seen)
    for place, (date, time) in enumerate(zip(seen, seen[1:], strict=False)):
        stem = [[word for word in names.words(c.column) if word not in ("date", "day", "time")] for c in (date, time)]
        if date.kind == "date" and time.kind is None and time.why[0].startswith("times of day") and stem[0] == stem[1]:
            why = [*date.why, f"its time of day from {time.column!r}"]
            out[place] = replace(date, clean={**date.clean, "time": time.column}, why=why)
            out[place + 1] = replace(time, why=[f"the time of {date.column!r}, joined to it"])
    return out


def patient_lines(patient: str | None, rows: pl.DataFrame) -> list[str]:
    if patient is None:
        return [
            f"patient = {quoted(ROW)}  # EDIT: no column is named like a patient's; this says one row is one patient"
        ]
    lines = [f"patient = {quoted(patient)}  # EDIT: by its name; is it the patient, and not a stay or a sample?"]
    if rows[patient].null_count():
        lines.append(
            f"# EDIT: it is empty in {rows[patient].null_count()} rows, which will be refused: filter with where"
        )
    if rows[patient].drop_nulls().n_unique() < rows[patient].count():
        lines.append("one_row_per_patient = false  # EDIT: patients are repeated; is one row a stay?")
    return lines


def feature_lines(seen: Seen) -> list[str]:
    entry = {"column": seen.column, "name": seen.name, "unit": seen.unit}
    entry = {key: value for key, value in entry.items() if value}
    entry |= {"section": "Outcome" if seen.outcome else names.section(seen.column, seen.unit), "kind": seen.kind or ""}
    parts = [f"{key} = {quoted(value)}" for key, value in entry.items()]
    if seen.ordinal:
        parts.append("ordinal = true")
    if seen.outcome:
        parts.append('known = "outcome"')
    if seen.missing:
        parts.append(f"missing = [{', '.join(quoted(mark) for mark in seen.missing)}]")
    if seen.clean:
        inside = (f"{key} = {'true' if value is True else quoted(str(value))}" for key, value in seen.clean.items())
        parts.append(f"clean = {{ {', '.join(inside)} }}")
    return [*(f"  # {why}" for why in seen.why), f"  {{ {', '.join(parts)} }},"]


def never_lines(seen: Seen, columns: Sequence[str], all_seen: Sequence[Seen]) -> list[str]:
    """A time that a date uses is not "never used", so it stands as a comment."""
    used = any(other.clean.get("time") == seen.column for other in all_seen)
    return [f"  {'# ' if used else ''}{quoted(seen.column)},  # {'; '.join(seen.why)}"]


def words_lines(features: Sequence[Seen], rows: pl.DataFrame) -> list[str]:
    told = [column.column for column in features if column.clean.get("yes_no")]
    if not told:
        return []
    found = {word for column in told for word in rows[column].drop_nulls().str.to_lowercase().unique().to_list()}
    lists = {"yes": [w for w in YES if w in found or w == "yes"], "no": [w for w in NO if w in found or w == "no"]}
    lines = (f"{key} = [{', '.join(quoted(word) for word in words)}]" for key, words in lists.items())
    return ["[words]  # upper and lower case alike; the first of each list is printed", *lines, ""]


def table_lines(table: Table, marks: Sequence[str], folder: Path) -> list[str]:
    lines = ["[table]", f"source = {quoted(table.source)}"]
    if table.path:
        path = Path(table.path)
        inside = path.is_relative_to(folder.resolve())
        lines.append(f"path = {quoted(str(path.relative_to(folder.resolve()) if inside else path))}")
    for key in ("sheet", "server", "query"):
        value = str(table.model_dump()[key])
        if value:
            lines.append(f"{key} = {quoted(value)}")
    if table.source == "csv":
        lines.append(f"delimiter = {quoted(table.delimiter)}")
    if table.encoding != "utf-8":
        lines.append(f"encoding = {quoted(table.encoding)}  # EDIT: a guess, as the file is not UTF-8")
    listed = ", ".join(quoted(mark) for mark in ("", *marks))
    lines.append(f"missing = [{listed}]  # EDIT: common marks found in the table; add this registry's own, such as -9")
    return lines


def quoted(text: str) -> str:
    """A TOML basic string; JSON's is one but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
