"""Queries against a real SQLite file and a real PostgreSQL server."""

import sqlite3
from contextlib import closing
from pathlib import Path

import adbc_driver_postgresql.dbapi as postgres
import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import ROW, RegistryConfig, Table
from common.registry.readers import read_table
from common.registry.registry import load_registry

SECRET = "Zaphod"
SCHEMA = [
    "CREATE TABLE stay (id INTEGER, age DOUBLE PRECISION, lab TEXT, admitted TEXT)",
    "INSERT INTO stay VALUES (7, 61.0, '0.1', '2024-03-01'), (8, 50.5, NULL, '2024-03-02')",
    f"INSERT INTO stay VALUES (9, NULL, '{SECRET}', NULL)",
]


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    path = tmp_path / "stays.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in SCHEMA:
            connection.execute(statement)
    return path


def read(path: Path, query: str) -> pl.DataFrame:
    return read_table(Table(source="sql", path=str(path), query=query)).collect()


def test_an_sqlite_query_comes_back_as_text(sqlite: Path) -> None:
    frame = read(sqlite, "SELECT id, age, lab AS value FROM stay WHERE id < 9 ORDER BY id;")
    assert frame.columns == [ROW, "id", "age", "value"]
    assert frame.rows() == [("1", "7", "61", "0.1"), ("2", "8", "50.5", None)]


def test_a_column_of_several_types_is_text(sqlite: Path) -> None:
    assert read(sqlite, "SELECT 1 AS a UNION ALL SELECT 'x' UNION ALL SELECT NULL")["a"].to_list() == ["1", "x", None]


def test_no_rows_are_no_rows(sqlite: Path) -> None:
    assert read(sqlite, "SELECT id, age FROM stay WHERE id = 0").shape == (0, 3)


REFUSED = {
    "unknown table": ("SELECT * FROM nowhere", "refused table.query"),
    "a write": ("DELETE FROM stay", "refused table.query"),
    "two statements": ("SELECT 1 AS a; SELECT 2 AS a", "refused table.query"),
    "not UTF-8": ("SELECT CAST(x'ff5a6170686f64' AS TEXT) AS a", "not UTF-8"),
    "column twice": ("SELECT id, age AS id FROM stay", "columns 1 and 2 have the same name"),
    "binary": ("SELECT x'00' AS a UNION ALL SELECT 1", "binary values"),
    "reserved name": ('SELECT id AS "#row" FROM stay', "may not be called '#row'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_faulty_sqlite_query_is_refused_and_quotes_no_patient(sqlite: Path, name: str) -> None:
    query, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        read(sqlite, query)
    assert str(sqlite) in caught.value.what and caught.value.remedy
    assert SECRET not in str(caught.value)
    with closing(sqlite3.connect(sqlite)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM stay").fetchone() == (3,)


def test_another_file_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,age\n1,2\n")
    with pytest.raises(UserError, match="not an SQLite database"):
        read(path, "SELECT 1 AS a")


@pytest.fixture(scope="module")
def server(postgres_home: Path) -> str:
    """The URL of a server with the table `stay` and a user who may read it, with a password."""
    with postgres.connect(f"postgresql:///postgres?host={postgres_home}&user=owner") as connection:
        with connection.cursor() as cursor:
            for statement in (*SCHEMA, "CREATE ROLE reader LOGIN PASSWORD 'marvin'"):
                cursor.execute(statement)
            cursor.execute("GRANT SELECT ON stay TO reader")
        connection.commit()
    return f"postgresql://reader:${{WARDROUND_TEST_PASSWORD}}@/postgres?host={postgres_home}"


def ask(server: str, query: str) -> pl.DataFrame:
    return read_table(Table(source="sql", server=server, query=query)).collect()


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_TEST_PASSWORD", "marvin")


@pytest.mark.usefixtures("password")
def test_a_postgresql_query_comes_back_as_text(server: str) -> None:
    query = """SELECT id, age, 2.50::numeric AS n, DATE '2024-03-01' AS d, TIME '10:30' AS t,
        TIMESTAMP '2024-03-01 10:30' AS ts, true AS "b""q", NULL::integer AS z, '3 days'::interval AS i
        FROM stay WHERE id = 7; -- the first"""
    query = query.replace(";", "")
    frame = ask(server, query)
    assert frame.columns == [ROW, "id", "age", "n", "d", "t", "ts", 'b"q', "z", "i"]
    assert frame.rows() == [
        ("1", "7", "61", "2.50", "2024-03-01", "10:30:00", "2024-03-01 10:30:00", "true", None, "3 days")
    ]


@pytest.mark.usefixtures("password")
def test_a_registry_is_the_same_from_either_database(server: str, sqlite: Path) -> None:
    query = "SELECT id, age, admitted FROM stay"
    features = [
        {"column": "age", "name": "Age", "section": "S", "kind": "number"},
        {"column": "admitted", "name": "Admitted", "section": "S", "kind": "date"},
    ]
    frames = [
        load_registry(
            RegistryConfig.model_validate(
                {
                    "site": "a",
                    "patient": "id",
                    "features": features,
                    "table": {"source": "sql", "query": query, **where},
                }
            )
        ).frame
        for where in ({"path": str(sqlite)}, {"server": server})
    ]
    assert frames[0].equals(frames[1])
    assert frames[0]["age"].to_list() == [61.0, 50.5, None]


REFUSED_BY_POSTGRES = {
    "unknown table": ("SELECT * FROM nowhere", "42P01"),
    "a value in the error": ("SELECT lab::integer AS lab FROM stay", "refused table.query"),
    "a write": ("DELETE FROM stay RETURNING id", "refused table.query"),
    "two statements": ("SELECT 1 AS a; SELECT 2 AS b", "refused table.query"),
    "column twice": ("SELECT id, age AS id FROM stay", "columns 1 and 2 have the same name"),
    "no columns": ("SELECT", "no column names"),
}


@pytest.mark.usefixtures("password")
@pytest.mark.parametrize("name", REFUSED_BY_POSTGRES)
def test_a_faulty_postgresql_query_is_refused_and_quotes_no_patient(server: str, name: str) -> None:
    query, message = REFUSED_BY_POSTGRES[name]
    with pytest.raises(UserError, match=message) as caught:
        ask(server, query)
    assert "postgresql:///postgres" in caught.value.what and caught.value.remedy
    for secret in (SECRET, "marvin", "reader"):
        assert secret not in str(caught.value)


def test_a_wrong_and_an_unset_password(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_TEST_PASSWORD", "ford")
    with pytest.raises(UserError, match="no connection") as caught:
        ask(server, "SELECT id FROM stay")
    assert "ford" not in str(caught.value)
    monkeypatch.delenv("WARDROUND_TEST_PASSWORD")
    with pytest.raises(UserError, match="needs the environment variable WARDROUND_TEST_PASSWORD"):
        ask(server, "SELECT id FROM stay")
