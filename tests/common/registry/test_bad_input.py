"""Every reader against every fault: the declared policy, or a refusal that names file and column and no patient."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.registry.config import RegistryConfig, Table
from common.registry.registry import Registry, load_registry
from common.registry.translation import Translate

READERS = ("csv", "parquet", "excel", "sqlite", "postgresql")
SECRET = "Zaphod"
HEADER = ["id", "age", "sex", "onset", "ward"]
ROWS: list[list[Any]] = [
    ["p1", 61, "M", "2024-03-01", "a"],
    ["p2", 70.5, "F", "2024-03-02", "b"],
    ["p3", 55, "M", "2024-03-03", "a"],
    ["p4", None, "F", None, "b"],
]
Write = Callable[..., Table]


def declare(table: Table, **clean: dict[str, Any]) -> RegistryConfig:
    """The site file of `ROWS`; `age = {...}` cleans that column."""
    kinds = {"age": "number", "sex": "category", "onset": "date", "ward": "category"}
    features = [
        {"column": c, "name": c.title(), "section": "S", "kind": kind, "clean": clean.get(c, {})}
        for c, kind in kinds.items()
    ]
    features[0] |= {"unit": "years"}
    features[1] |= {"values": {"M": "male", "F": "female"}}
    return RegistryConfig.model_validate({"site": "here", "patient": "id", "table": table, "features": features})


def with_cell(row: int, column: str, cell: Any) -> list[list[Any]]:
    rows = [list(values) for values in ROWS]
    rows[row][HEADER.index(column)] = cell
    return rows


def refused(config: RegistryConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_registry(config)
    assert config.table.place in caught.value.what and caught.value.remedy
    assert SECRET not in str(caught.value)


def first(registry: Registry, column: str) -> Any:
    return registry.frame[column][0]


@pytest.mark.parametrize("reader", READERS)
def test_a_good_table_reads_the_same_everywhere(write: Write, reader: str) -> None:
    assert load_registry(declare(write(reader, HEADER, ROWS))).frame.rows() == [
        ("p1", 61.0, "male", datetime(2024, 3, 1), "a"),
        ("p2", 70.5, "female", datetime(2024, 3, 2), "b"),
        ("p3", 55.0, "male", datetime(2024, 3, 3), "a"),
        ("p4", None, "female", None, "b"),
    ]


BAD_CELLS = {
    "mixed types": ("age", f"about {SECRET}", {}, "1 of 3 values of the column 'age' are not numbers .1 other text"),
    "a unit": ("age", f"61 {SECRET}", {}, "'age' are not numbers .1 with text behind a number"),
    "a comparison sign": ("age", "<61", {}, "'age' are not numbers .1 with a comparison sign"),
    "a thousands sign": ("age", "1,200", {}, "'age' are not numbers .1 with a comma"),
    "an impossible number": ("age", 612, {"most": 120}, "1 of 3 values of the column 'age' lie outside"),
    "an impossible date": ("onset", "2024-02-30", {}, "'onset' are not dates .1 that no calendar has"),
    "a date of no format": ("onset", "3.1.2024", {}, "'onset' are not dates .1 with the year last"),
    "a year long ago": ("onset", "1024-03-01", {"earliest": "1900-01-01"}, "1 of 3 values of the column 'onset' lie"),
    "an unknown category": ("sex", SECRET, {"unlisted": "refuse"}, "1 of 4 values of the column 'sex' are not in its"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_bad_cell_is_refused_or_dropped_as_declared(write: Write, reader: str, name: str) -> None:
    column, cell, clean, message = BAD_CELLS[name]
    table = write(reader, HEADER, with_cell(0, column, cell))
    refused(declare(table, **{column: clean}), message)
    policy = "unlisted" if column == "sex" else "messy"
    dropped = load_registry(declare(table, **{column: {**clean, policy: "missing"}}))
    assert first(dropped, column) is None and dropped.frame.height == 4


KEPT = {
    "a unit": ("age", "61 years", {"messy": "keep"}, 61.0),
    "a comparison sign": ("age", "<61", {"messy": "keep"}, 61.0),
    "a thousands sign": ("age", "1,200", {"thousands": ","}, 1200.0),
    "another unit": ("age", "24 months", {"messy": "keep", "convert": {"unit": "months", "factor": 0.5}}, 12.0),
    "another way of writing dates": ("onset", "1.3.2024", {"date_format": "%d.%m.%Y"}, datetime(2024, 3, 1)),
    "an unknown category": ("sex", "X", {"unlisted": "keep"}, "X"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", KEPT)
def test_a_messy_cell_is_kept_as_declared(write: Write, reader: str, name: str) -> None:
    column, cell, clean, value = KEPT[name]
    rows = with_cell(0, column, cell)
    if "convert" in clean:
        rows = [[*row[:1], None if place else cell, *row[2:]] for place, row in enumerate(rows)]
        rows[1][1] = "36"
    assert first(load_registry(declare(write(reader, HEADER, rows), **{column: clean})), column) == value


BAD_TABLES: dict[str, tuple[list[str], list[list[Any]], str]] = {
    "a column twice": (
        ["id", "age", "sex", "age", "ward"],
        ROWS,
        "columns 2 and 4 have the same name|a column stands twice",
    ),
    "a column twice but for spaces": (["id", "age", "sex", "age ", "ward"], ROWS, "columns 2 and 4 have the same name"),
    "a reserved name": (["#row", "age", "sex", "onset", "ward"], ROWS, "may not be called '#row'"),
    "a missing column": (["id", "Age", "sex", "onset", "ward"], ROWS, "there is no column 'age'"),
    "no rows": (HEADER, [], "no row is left"),
    "a patient twice": (HEADER, with_cell(1, "id", "p1"), "1 rows repeat a value of 'id'"),
    "nobody's row": (HEADER, with_cell(1, "id", None), "'id' is empty in 1 of 4 rows"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused(write: Write, reader: str, name: str) -> None:
    header, rows, message = BAD_TABLES[name]
    refused(declare(write(reader, header, rows)), message)


@pytest.mark.parametrize("reader", ["csv", "excel", "parquet"])
def test_a_nameless_column_is_refused(write: Write, reader: str) -> None:
    refused(declare(write(reader, ["id", "age", "sex", "onset", ""], ROWS)), "column 5 has no name")


@pytest.mark.parametrize("reader", READERS)
def test_a_patient_in_the_place_of_the_header_is_not_quoted(write: Write, reader: str) -> None:
    for first in ([f"{SECRET}1", "61", "M", "2024-03-01", "a"], [SECRET, SECRET, "M", "2024-03-01", "a"]):
        table = write(reader, first, ROWS)
        refused(declare(table), "no column|have the same name|a column stands twice")
        with pytest.raises(UserError) as caught:
            load_registry(declare(table).model_copy(update={"translate": Translate(other_headers="refuse")}))
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_another_number_of_rows_than_the_export_had_is_refused(write: Write, reader: str) -> None:
    table = write(reader, HEADER, ROWS)
    assert load_registry(declare(table.model_copy(update={"rows": 4}))).frame.height == 4
    refused(declare(table.model_copy(update={"rows": 5})), "4 rows were found, the site file declares 5")


@pytest.mark.parametrize("reader", ["csv", "parquet", "excel", "sqlite"])
def test_a_file_that_is_cut_off_is_refused(write: Write, reader: str) -> None:
    rows = [[f"{SECRET}{n}", n, "MF"[n % 2], "2024-03-01", f"{SECRET} of ward {n % 3}"] for n in range(200)]
    table = write(reader, HEADER, rows)
    path = Path(table.path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.999):
        end = int(share * len(whole))
        # A CSV file that is cut behind a whole line, or in its last cell, is found by `table.rows` alone.
        path.write_bytes(whole[: whole.rindex(b",", 0, end) if reader == "csv" else end])
        refused(declare(table), "damaged|cut off|fields, the header has|not a Parquet|not a spreadsheet|no column")
    path.write_bytes(b"")
    refused(declare(table), "the file is empty")


@pytest.mark.parametrize("reader", ["csv", "sqlite"])
def test_text_in_another_encoding_is_refused_until_it_is_declared(write: Write, reader: str) -> None:
    table = write(reader, HEADER, with_cell(0, "ward", f"{SECRET}äöü"))
    path = Path(table.path)
    path.write_bytes(path.read_bytes().replace("äöü".encode(), "äöü".encode("cp1252") + b"   "))
    refused(declare(table), "the text is not UTF-8")
    declared = table.model_copy(update={"encoding": "cp1252"})
    assert first(load_registry(declare(declared)), "ward") == f"{SECRET}äöü"
    declared = table.model_copy(update={"encoding": "ascii"})
    refused(declare(declared), "the text is not ASCII")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told_and_read_once_declared(write: Write, encoding: str) -> None:
    table = write("csv", HEADER, ROWS)
    path = Path(table.path)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    refused(declare(table), "seems to be UTF-16")
    declared = table.model_copy(update={"encoding": encoding})
    assert load_registry(declare(declared)).frame.height == 4
    refused(declare(table.model_copy(update={"encoding": "cp1252"})), "seems to be UTF-16")


def test_utf_8_that_is_declared_as_something_else_is_refused(write: Write) -> None:
    table = write("csv", HEADER, with_cell(0, "ward", f"{SECRET}äöü"))
    refused(declare(table.model_copy(update={"encoding": "latin-1"})), "the text is UTF-8, not latin-1")
    declared = write("csv", HEADER, ROWS).model_copy(update={"encoding": "utf-16"})
    refused(declare(declared), "not UTF-16|no column names|no column")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_told(write: Write, mark: str) -> None:
    table = write("csv", HEADER, ROWS)
    path = Path(table.path)
    path.write_text(path.read_text(encoding="utf-8").replace(",", mark).replace("70.5", "70,5"), encoding="utf-8")
    refused(declare(table), "seem to be separated by")
    other = table.model_copy(update={"delimiter": mark})
    assert load_registry(declare(other, age={"decimal": ","})).frame.height == 4
