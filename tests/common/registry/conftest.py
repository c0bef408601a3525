"""The same table through every reader, with a PostgreSQL server of the tests' own."""

import csv
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgres
import pyarrow as pa
import pyarrow.parquet
import pytest
import xlsxwriter

from common.registry.config import Table

Cell = str | int | float | None


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return Table(source="csv", path=str(path))


def write_parquet(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Columns of numbers where all cells are; pyarrow, unlike polars, writes a column twice."""
    columns = []
    for place in range(len(header)):
        cells = [row[place] for row in rows]
        typed = all(cell is None or isinstance(cell, int | float) for cell in cells)
        columns.append(pa.array(cells if typed else [None if cell is None else str(cell) for cell in cells]))
    pyarrow.parquet.write_table(pa.table(columns, names=list(header)), path)
    return Table(source="parquet", path=str(path))


def write_excel(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    with xlsxwriter.Workbook(path, {"strings_to_formulas": False, "strings_to_urls": False}) as book:
        sheet = book.add_worksheet("Stays")
        for place, row in enumerate([header, *rows]):
            sheet.write_row(place, 0, row)
    return Table(source="excel", path=str(path))


def write_sqlite(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Columns without a type, as SQLite allows: every cell keeps its own."""
    inside = [f"c{place}" for place in range(len(header))]
    named = ", ".join(f'{column} AS "{name}"' for column, name in zip(inside, header, strict=True))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE IF EXISTS stay")
        connection.execute(f"CREATE TABLE stay ({', '.join(inside)})")
        connection.executemany(f"INSERT INTO stay VALUES ({', '.join('?' * len(header))})", rows)
    return Table(source="sql", path=str(path), query=f"SELECT {named} FROM stay ORDER BY rowid")


def write_postgres(home: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table of text in a schema of its own, which replaces the last one."""
    inside = [f"c{place}" for place in range(len(header))]
    named = ", ".join(f'{column} AS "{name}"' for column, name in zip(inside, header, strict=True))
    server = f"postgresql:///postgres?host={home}&user=owner"
    with postgres.connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS fault CASCADE")
        cursor.execute("CREATE SCHEMA fault")
        cursor.execute(f"CREATE TABLE fault.stay ({', '.join(f'{column} text' for column in inside)}, n serial)")
        places = ", ".join(f"${place + 1}" for place in range(len(header)))
        texts = [tuple(None if cell is None else str(cell) for cell in row) for row in rows]
        cursor.executemany(f"INSERT INTO fault.stay VALUES ({places})", texts)
        connection.commit()
    return Table(source="sql", server=server, query=f"SELECT {named} FROM fault.stay ORDER BY n")


FILES: dict[str, tuple[str, Any]] = {
    "csv": ("stay.csv", write_csv),
    "parquet": ("stay.parquet", write_parquet),
    "excel": ("stay.xlsx", write_excel),
    "sqlite": ("stay.db", write_sqlite),
}
"""Reader -> the file's name and what writes it."""


@pytest.fixture
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Table]:
    """`write(reader, header, rows)`: the table as this reader finds it, a file or a table of the server's."""

    def one(reader: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
        if reader == "postgresql":
            return write_postgres(request.getfixturevalue("postgres_home"), header, rows)
        name, writer = FILES[reader]
        return writer(tmp_path / name, header, rows)

    return one


def programs() -> Path | None:
    """The folder of PostgreSQL's own programs; Debian keeps the server's outside PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def server_user() -> str | None:
    """PostgreSQL refuses to run as root; None where this user is nobody special."""
    if os.geteuid() != 0:
        return None
    users = [entry.pw_name for entry in pwd.getpwall()]
    return "postgres" if "postgres" in users else "nobody"


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """The folder of a running server's socket; `owner` may do everything, others log in with a password."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed; `apt-get install postgresql` brings it")
    user = server_user()
    # A socket's path is limited to about 100 characters, which pytest's own folders exceed.
    with tempfile.TemporaryDirectory(prefix="wr-pg-") as name:
        home = Path(name)
        if user is not None:
            shutil.chown(home, user)

        def call(*line: str) -> None:
            subprocess.run(line, check=True, user=user, cwd=home, stdout=subprocess.DEVNULL, timeout=120)

        call(str(folder / "initdb"), "-D", str(home / "data"), "-A", "trust", "-U", "owner", "-N", "-E", "UTF8")
        (home / "data" / "pg_hba.conf").write_text("local all owner trust\nlocal all reader scram-sha-256\n")
        options = f"-c listen_addresses='' -c fsync=off -k {home}"
        control = (str(folder / "pg_ctl"), "-D", str(home / "data"), "-w", "-l", str(home / "log"))
        call(*control, "-o", options, "start")
        try:
            yield home
        finally:
            call(*control, "-m", "immediate", "stop")
