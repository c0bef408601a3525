"""The site file of docs/omop.md against small databases with the names of the OMOP CDM 5.4."""

import re
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as postgres

from common.registry.config import RegistryConfig
from common.registry.registry import load_registry

PAGE = (Path(__file__).parents[3] / "docs" / "omop.md").read_text(encoding="utf-8")
SCHEMA = [
    "CREATE TABLE person (person_id integer, gender_concept_id integer, year_of_birth integer)",
    "CREATE TABLE visit_occurrence (visit_occurrence_id integer, person_id integer, visit_concept_id integer,"
    " visit_start_date date, visit_start_datetime timestamp, visit_end_date date, visit_end_datetime timestamp)",
    "CREATE TABLE measurement (measurement_id integer, person_id integer, measurement_concept_id integer,"
    " measurement_datetime timestamp, value_as_number numeric, unit_concept_id integer, visit_occurrence_id integer)",
    "CREATE TABLE condition_occurrence (condition_occurrence_id integer, person_id integer,"
    " condition_concept_id integer, condition_start_date date)",
    "CREATE TABLE concept_ancestor (ancestor_concept_id integer, descendant_concept_id integer)",
    "CREATE TABLE death (person_id integer, death_date date)",
    # A man with two stays, a woman who dies, one whose sex nobody knows, one who leaves early, one in the clinic.
    "INSERT INTO person VALUES (1, 8507, 1960), (2, 8532, 1950), (3, 0, 1990), (4, 8507, 1970), (5, 8532, 1980)",
    "INSERT INTO visit_occurrence VALUES"
    " (11, 1, 9201, '2024-03-01', '2024-03-01 10:00:00', '2024-03-05', '2024-03-05 12:00:00'),"
    " (12, 1, 262, '2024-06-01', '2024-06-01 10:00:00', '2024-06-09', '2024-06-09 12:00:00'),"
    " (21, 2, 9201, '2024-03-01', '2024-03-01 23:00:00', '2024-03-04', '2024-03-04 08:00:00'),"
    " (31, 3, 9201, '2024-03-01', '2024-03-01 10:00:00', '2024-03-05', '2024-03-05 12:00:00'),"
    " (41, 4, 9201, '2024-03-01', '2024-03-01 10:00:00', '2024-03-02', '2024-03-02 09:00:00'),"
    " (51, 5, 9202, '2024-03-01', '2024-03-01 10:00:00', '2024-03-05', '2024-03-05 12:00:00')",
    "INSERT INTO measurement VALUES"
    " (1, 1, 3016723, '2024-03-01 09:59:00', 9.0, 8840, 11),"  # before the stay
    " (2, 1, 3016723, '2024-03-01 12:00:00', 1.5, 8840, 11),"
    " (3, 1, 3016723, '2024-03-01 11:00:00', 120, 8749, 11),"  # another unit
    " (4, 1, 3016723, '2024-03-01 18:00:00', 2.5, 8840, 11),"  # not the first
    " (5, 1, 3047181, '2024-03-02 10:00:00', 7.7, 8753, 11),"  # the day is over
    " (6, 2, 3047181, '2024-03-02 22:59:00', 4.2, 8753, NULL),"
    " (7, 2, 3016723, '2024-03-02 01:00:00', NULL, 8840, 21),"
    " (8, 3, 3016723, '2024-03-01 10:00:00', 0.8, 8840, 31), (9, 3, 3047181, '2024-03-01 10:00:00', 2.2, 8753, 31)",
    "INSERT INTO concept_ancestor VALUES (201820, 201820), (201820, 201826), (316866, 316866)",
    "INSERT INTO condition_occurrence VALUES"
    " (1, 1, 201826, '2024-03-02'), (2, 2, 201820, '2010-01-01'), (3, 3, 316866, '2010-01-01')",
    "INSERT INTO death VALUES (2, '2024-03-04'), (3, '2024-04-01')",
]
EXPECTED = [
    ("1", 64.0, "male", "no", 1.5, None, "no"),
    ("1", 64.0, "male", "yes", None, None, "no"),
    ("2", 74.0, "female", "yes", None, 4.2, "yes"),
    ("3", 34.0, None, "no", 0.8, 2.2, "no"),
]


def declared(**table: Any) -> RegistryConfig:
    (text,) = re.findall(r"```toml omop.toml\n(.*?)```", PAGE, flags=re.DOTALL)
    values = tomllib.loads(text)
    values["table"] = {"source": "sql", "query": values["table"]["query"], **table}
    return RegistryConfig.model_validate(values)


def test_the_recipe_runs_on_sqlite_with_the_expressions_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "omop.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in SCHEMA:
            connection.execute(statement)
    query = declared(path=str(path)).table.query
    pairs = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", PAGE, flags=re.MULTILINE)
    assert len(pairs) == 3
    for theirs, here in pairs:
        assert query.count(theirs) == 1
        query = query.replace(theirs, here)
    assert load_registry(declared(path=str(path), query=query)).frame.rows() == EXPECTED


def test_the_recipe_runs_on_postgresql_as_it_stands(postgres_home: Path) -> None:
    owner = f"postgresql:///postgres?host={postgres_home}&user=owner"
    with postgres.connect(owner) as connection:
        with connection.cursor() as cursor:
            for statement in ("CREATE SCHEMA omop", "SET search_path TO omop", *SCHEMA):
                cursor.execute(statement)
        connection.commit()
    server = f"{owner}&options=-csearch_path%3Domop"
    assert load_registry(declared(server=server)).frame.rows() == EXPECTED
