"""Spreadsheets as hospitals keep them."""

from datetime import date, datetime, time
from pathlib import Path

import polars as pl
import pytest
import xlsxwriter

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.readers import read_table

SECRET = "Zaphod"


def read(path: Path, sheet: str = "") -> pl.DataFrame:
    return read_table(Table(source="excel", path=str(path), sheet=sheet)).collect()


def write(path: Path, sheets: dict[str, list[list]]) -> Path:
    with xlsxwriter.Workbook(path, {"default_date_format": "yyyy-mm-dd"}) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for place, row in enumerate(rows):
                sheet.write_row(place, 0, row)
    return path


def test_cells_come_back_as_text_whatever_their_type(tmp_path: Path) -> None:
    rows = [
        ["id", "age", "lab", "day", "hour", "alive"],
        [7, 61.0, "<0.1", date(2024, 3, 1), time(10, 30), True],
        [],
        [8, 50.5, 0.2, datetime(2024, 3, 2, 8, 15), None, False],
    ]
    frame = read(write(tmp_path / "a.xlsx", {"Sepsis": rows}))
    assert frame.columns == [ROW, "id", "age", "lab", "day", "hour", "alive"]
    assert frame.rows() == [
        ("1", "7", "61", "<0.1", "2024-03-01 00:00:00", "1899-12-31 10:30:00", "true"),
        ("3", "8", "50.5", "0.2", "2024-03-02 08:15:00", None, "false"),
    ]


def test_a_declared_sheet_is_read_and_empty_columns_are_no_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xlsx", {"Notes": [["x"], [1]], "Data": [["id", "", "age"], [1, "", 61]]})
    assert read(path, "Data").rows() == [("1", "1", "61")]
    assert read(path, "Data").columns == [ROW, "id", "age"]


REFUSED = {
    "several sheets": ({"A": [["id"], [1]], "B": [["id"], [2]]}, "", "has 2 sheets"),
    "unknown sheet": ({"A": [["id"], [1]]}, "C", "there is no sheet 'C'"),
    "nothing there": ({"A": []}, "", "'A' is empty"),
    "column twice": ({"A": [["id", "age", "age"], [1, 2, 3]]}, "", "columns 2 and 3 have the same name"),
    "nameless column": ({"A": [["id", ""], [1, SECRET]]}, "", "has no name"),
    "reserved name": ({"A": [[ROW], [1]]}, "", "may not be called '#row'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_faulty_sheet_is_named_and_quotes_no_patient(tmp_path: Path, name: str) -> None:
    sheets, sheet, message = REFUSED[name]
    path = write(tmp_path / "a.xlsx", sheets)
    with pytest.raises(UserError, match=message) as caught:
        read(path, sheet)
    assert str(path) in caught.value.what and caught.value.remedy
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("cut", [20, 2000])
def test_a_damaged_workbook_and_a_renamed_csv_are_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.xlsx", {"A": [["id", "name"], *([n, SECRET] for n in range(100))]})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match="not a spreadsheet") as caught:
        read(path)
    assert SECRET not in str(caught.value)
    path.write_text(f"id,name\n1,{SECRET}\n")
    with pytest.raises(UserError, match="not a spreadsheet"):
        read(path)
