"""From a file to a table of strings: one function a source, all with the same result.

Every reader gives text columns with missing values as null, plus `ROW`, the row's number in the source
file counted from 1. What a column means (number, date, category) is decided later, by the feature
dictionary and not by what a file format happens to say, so "1", 1 and 1.0 are one value everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.delimited import read_csv
from common.registry.excel import read_excel
from common.registry.header import check_header
from common.registry.sql import read_sqlite


def read_table(table: Table) -> pl.LazyFrame:
    """The whole source as strings, not yet filtered, under column names without spaces around them.

    Raises:
        UserError: no file, an empty one, one that is not what `table.source` says, a faulty header, or another
            number of rows than declared.
    """
    rows = read_source(table).rename(str.strip)
    if table.rows is not None:
        found = rows.select(pl.len()).collect().item()
        if found != table.rows:
            raise UserError(
                f"{table.place}: {found} rows were found, the site file declares {table.rows}.",
                "Copy the export again, or correct table.rows.",
            )
    return rows


def read_source(table: Table) -> pl.LazyFrame:
    if table.server:
        from common.registry.postgres import read_postgres

        return as_strings(read_postgres(table), table.place).lazy()
    path = Path(table.path)
    start = first_bytes(path, table.get)
    if table.source == "csv":
        return read_csv(path, table, start)
    if table.source == "excel":
        return read_excel(path, table)
    if table.source == "sql":
        return as_strings(read_sqlite(path, table, start), table.place).lazy()
    return read_parquet(path)


def first_bytes(path: Path, get: str) -> bytes:
    """The beginning of a file that is there and not empty.

    Raises:
        UserError: no such file, a folder, no right to read it, nothing in it.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file.", get or "Correct table.path in the site file.")
    if not path.is_file():
        raise UserError(f"{path}: this is not a file.", "Give table.path the path of one file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except PermissionError:
        raise UserError(f"{path}: may not be read by this user.", "Give this user the right to read it.") from None
    if size == 0:
        raise UserError(f"{path}: the file is empty.", get or "Export the registry again.")
    return start


def read_parquet(path: Path) -> pl.LazyFrame:
    rows = pl.scan_parquet(path)
    try:
        schema = rows.collect_schema()
    except pl.exceptions.DuplicateError:
        raise UserError(f"{path}: a column stands twice.", "Rename or remove one of the two.") from None
    except (pl.exceptions.ComputeError, pl.exceptions.InvalidOperationError):
        raise UserError(
            f"{path}: not a Parquet file, or a damaged one.", "Export the table again, or correct table.source."
        ) from None
    return texts(rows, schema, str(path))


@contextmanager
def named_parse_faults(source: str) -> Iterator[None]:
    """Around what reads the rows of a lazy table. Polars quotes the offending cell, so its message goes no further."""
    try:
        yield
    except pl.exceptions.ComputeError:
        raise UserError(f"{source}: not parseable.", "Export the table again.") from None


def as_strings(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """`texts` of a table in memory."""
    return texts(frame.lazy(), frame.schema, source).collect()


def texts(rows: pl.LazyFrame, schema: pl.Schema, source: str) -> pl.LazyFrame:
    """A typed table as the readers hand it on: every column text, whole floats without their ".0", NaN null.

    Raises:
        UserError: a faulty header, or a column of lists or other nested values.
    """
    check_header(source, schema.names())
    columns = []
    for name, dtype in schema.items():
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
    return rows.select(columns).with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.String))
