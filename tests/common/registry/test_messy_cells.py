"""Random registries with messy cells: reading ends in a registry or in a refusal, and no refusal quotes a cell."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.registry.config import RegistryConfig, Table
from common.registry.drafting.draft import draft
from common.registry.readers import read_table
from common.registry.registry import load_registry

MARK = "Zaphod"
"""In every cell that is not a plain one, so that a message that quotes a cell is found out."""
PLAIN = ("61", "7.5", "<5", "1,200", "5 mg/L", "2024-02-30", "2024-03-01", "1.3.2024", "yes", "N", "a", "", " ", "NA")
cells = st.one_of(
    st.sampled_from(PLAIN),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"{text}{MARK}"),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f"{MARK}{text}"),
    st.none(),
)
CLEAN: dict[str, list[dict[str, Any]]] = {
    "number": [
        {},
        {"messy": "keep", "thousands": ","},
        {"messy": "missing", "decimal": ",", "least": 0, "most": 50},
        {"messy": "keep", "convert": {"unit": "mg/L", "factor": 2.0, "offset": 1.0}},
    ],
    "category": [
        {},
        {"unlisted": "missing"},
        {"unlisted": "refuse"},
        {"yes_no": True, "messy": "keep"},
        {"several": ",", "messy": "missing"},
        {"ignore_case": True},
    ],
    "date": [{}, {"messy": "missing", "date_format": "%d.%m.%Y"}, {"earliest": "2000-01-01", "latest": "2030-01-01"}],
    "text": [{}, {"blank": {"where": "c0", "answers": ["yes"], "means": "none"}}],
}


@st.composite
def features(draw: st.DrawFn, count: int) -> list[dict[str, Any]]:
    out = []
    for place in range(count):
        kind = draw(st.sampled_from(sorted(CLEAN)))
        clean = dict(draw(st.sampled_from(CLEAN[kind])))
        if draw(st.booleans()):
            clean["not_applicable"] = {"where": "c0", "answers": ["N"], "means": draw(st.sampled_from(["", "1"]))}
        values = {"a": "b", "1": "c"} if kind == "category" else {}
        column = {"column": f"c{place}", "name": f"C{place}", "section": "S", "kind": kind}
        out.append({**column, "values": values, "clean": clean})
    return out


@st.composite
def registries(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[list[str | None]]]:
    declared = draw(features(draw(st.integers(3, 4))))
    rows = draw(st.lists(st.lists(cells, min_size=len(declared), max_size=len(declared)), min_size=1, max_size=8))
    return declared, rows


def write(reader: str, folder: Path, names: list[str], rows: list[list[str | None]]) -> Table:
    path = folder / f"t.{reader}"
    path.unlink(missing_ok=True)
    if reader == "sqlite":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE t ({', '.join(names)})")
            connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(names))})", rows)
        return Table(source="sql", path=str(path), query="SELECT * FROM t")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    if reader == "parquet":
        frame.write_parquet(path)
        return Table(source="parquet", path=str(path))
    frame.write_csv(path)
    return Table(source="csv", path=str(path))


@pytest.mark.parametrize("reader", ["csv", "parquet", "sqlite"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(registry=registries(), named=st.booleans())
def test_reading_ends_in_a_registry_or_a_refusal_without_a_cell(
    tmp_path: Path, reader: str, registry: tuple[list[dict[str, Any]], list[list[str | None]]], named: bool
) -> None:
    declared, rows = registry
    table = write(reader, tmp_path, [f["column"] for f in declared], rows)
    patient = "c0" if named else "#row"
    values = {"site": "here", "patient": patient, "table": table, "features": declared[named:]}
    words = {"yes": ["yes", "Y"], "no": ["no", "N"]}
    try:
        frame = load_registry(RegistryConfig.model_validate({**values, "words": words})).frame
    except UserError as error:
        assert MARK not in str(error)
    else:
        assert frame.height == len(read_table(table).collect()) and frame["patient"].null_count() == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=30))
def test_a_draft_of_a_messy_table_holds_no_cell(tmp_path: Path, rows: list[list[str | None]]) -> None:
    table = write("csv", tmp_path, ["stay_id", "Lab (mg/L)", "died"], rows)
    try:
        text, _ = draft(table, "here", tmp_path)
    except UserError as error:
        text = str(error)
    assert MARK not in text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=120), st.text("ab,;\"'\n\r\té\0", max_size=60).map(str.encode)))
def test_any_bytes_are_a_table_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"x,y\n" + content)
    try:
        rows = read_table(Table(source="csv", path=str(path))).collect()
    except UserError:
        return
    assert rows.columns[1:] == ["x", "y"]
