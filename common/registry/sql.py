"""A query's result as a table: SQLite through the standard library. PostgreSQL is in postgres.py.

Databases are opened for reading alone. What they say about an error may quote a patient's value, so only its code
goes on.
"""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import Table
from common.registry.delimited import not_in
from common.registry.header import check_header

SQLITE_START = b"SQLite format 3\0"


def read_sqlite(path: Path, table: Table, start: bytes) -> pl.DataFrame:
    """Columns as the database's own types; one with several types is text.

    Raises:
        UserError: not an SQLite database, or the query fails.
    """
    if not start.startswith(SQLITE_START):
        raise UserError(f"{path}: this is not an SQLite database.", "Correct table.path or table.source.")
    if cut_off(path, start):
        raise damaged(path)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = partial(str, encoding=table.encoding)
            cursor = connection.execute(table.query)
            names = [column[0] for column in cursor.description or ()]
            check_header(str(path), names)
            rows = cursor.fetchall()
    except UnicodeDecodeError:
        raise not_in(path, table.encoding) from None
    except (sqlite3.Error, sqlite3.Warning) as error:
        # The class itself and none of its kinds: what SQLite says of a file that is not whole.
        if type(error) is sqlite3.DatabaseError:
            raise damaged(path) from None
        raise failed(str(path), "") from None
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    if any(isinstance(value, bytes) for values in columns for value in values):
        raise UserError(f"{path}: the query gives binary values.", "Leave those columns out of the query.")
    return pl.DataFrame([pl.Series(name, values, strict=False) for name, values in zip(names, columns, strict=True)])


def cut_off(path: Path, start: bytes) -> bool:
    """Whether the file is shorter than its header says; SQLite itself fills up a last page that is cut off."""
    size = int.from_bytes(start[16:18], "big")
    pages = int.from_bytes(start[28:32], "big")
    # The count of pages is valid where the change counter is the one that it was written with.
    return start[24:28] == start[92:96] and path.stat().st_size < pages * (65536 if size == 1 else size)


def damaged(path: Path) -> UserError:
    return UserError(f"{path}: the database is damaged or cut off.", "Copy it again from its source.")


def failed(place: str, code: str) -> UserError:
    said = f" ({code})" if code else ""
    return UserError(
        f"{place}: the database refused table.query{said}.",
        "Try the query in the database's own client as the same user, who may only read.",
    )
