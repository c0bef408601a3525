"""From a file to a table of strings: one function a source, all with the same result.

Every reader gives text columns with missing values as null, plus `ROW`, the row's number in the source
file counted from 1. What a column means (number, date, category) is decided later, by the feature
dictionary and not by what a file format happens to say, so "1", 1 and 1.0 are one value everywhere.
"""

import csv
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.excel import read_excel
from common.registry.sql import read_postgres, read_sqlite

DELIMITERS = (",", ";", "\t", "|")


def read_table(table: Table) -> pl.LazyFrame:
    """The whole source as strings, not yet filtered.

    Raises:
        UserError: no file, an empty one, or one that is not what `table.source` says.
    """
    if table.server:
        return as_strings(read_postgres(table), table.place).lazy()
    path = Path(table.path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file.", table.get or "Correct table.path in the site file.")
    if not path.is_file():
        raise UserError(f"{path}: this is not a file.", "Give table.path the path of one file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except PermissionError:
        raise UserError(f"{path}: may not be read by this user.", "Give this user the right to read it.") from None
    if size == 0:
        raise UserError(f"{path}: the file is empty.", table.get or "Export the registry again.")
    if table.source == "csv":
        return read_csv(path, table, start)
    if table.source == "excel":
        return read_excel(path, table)
    if table.source == "sql":
        return as_strings(read_sqlite(path, table, start), table.place).lazy()
    return read_parquet(path)


def read_csv(path: Path, table: Table, start: bytes) -> pl.LazyFrame:
    """Delimited UTF-8 text whose first line names the columns."""
    if b"\0" in start:
        raise UserError(
            f"{path}: this is a binary file or UTF-16, not UTF-8 text.",
            "Export the table as CSV in UTF-8, or correct table.source.",
        )
    check_lines(path, table.delimiter)
    lazy = pl.scan_csv(path, separator=table.delimiter, infer_schema=False)
    blank = pl.all_horizontal(pl.all().exclude(ROW).is_null())
    return lazy.with_row_index(ROW, offset=1).filter(~blank).with_columns(pl.col(ROW).cast(pl.String))


def check_lines(path: Path, delimiter: str) -> None:
    """Every row must have as many fields as the header: polars would fill a short one, such as the last row of
    an interrupted copy, with nulls. One pass, nothing is kept; messages name lines, never what stands there.

    Raises:
        UserError: not UTF-8, a faulty header, a quote left open, a row that is too long or too short.
    """
    lines = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(reader, [])
            check_header(path, header, delimiter)
            for row in reader:
                lines = reader.line_num
                if row and len(row) != len(header):
                    raise UserError(
                        f"{path}: line {lines} has {len(row)} fields, the header has {len(header)}.",
                        f"Export the table again, with values that contain {delimiter!r} in double quotes.",
                    )
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except csv.Error:
        raise UserError(
            f"{path}: not parseable as CSV after line {lines}; a quote that is not closed is the usual cause.",
            "Export the table again, with double quotes inside values doubled.",
        ) from None


def not_utf8(path: Path) -> UserError:
    return UserError(f"{path}: the text is not UTF-8.", "Save or export the file in UTF-8.")


def check_header(path: Path, header: list[str], delimiter: str) -> None:
    """Faults in the first line that would otherwise appear as puzzling ones later."""
    if not any(name.strip() for name in header):
        raise UserError(f"{path}: the first line names no columns.", "Put the column names in the first line.")
    if ROW in header:
        raise UserError(f"{path}: a column may not be called {ROW!r}.", "Rename it.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the column {twice[0]!r} stands twice in the header.", "Rename one of the two.")
    other = [mark for mark in DELIMITERS if mark != delimiter and mark in header[0]]
    if len(header) == 1 and other:
        raise UserError(
            f"{path}: its columns seem to be separated by {other[0]!r} and not by {delimiter!r}.",
            f"Set table.delimiter to {other[0]!r}.",
        )


def read_parquet(path: Path) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path).collect()
    except pl.exceptions.ComputeError:
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one.", "Export the table again, or correct table.source."
        ) from None
    return as_strings(frame, str(path)).lazy()


def as_strings(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """A typed table as the readers hand it on: every column text, whole floats without their ".0", NaN null.

    Raises:
        UserError: a column holds lists or other nested values.
    """
    if ROW in frame.columns:
        raise UserError(f"{source}: a column may not be called {ROW!r}.", "Rename it.")
    columns = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            raise UserError(
                f"{source}: the column {name!r} holds nested or binary values.", "Leave it out or write it as text."
            )
        if dtype.is_float():
            # Databases turn whole-number columns with gaps into floats; 2.0 must still match the code "2".
            whole = (column == column.round(0)) & (column.abs() < 2**53)
            text = (
                pl.when(whole)
                .then(column.cast(pl.Int64, strict=False).cast(pl.String))
                .otherwise(column.cast(pl.String))
            )
            columns.append(pl.when(column.is_nan()).then(None).otherwise(text).alias(name))
        else:
            columns.append(column.cast(pl.String))
    return frame.select(columns).with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.String))
