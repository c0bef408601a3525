"""Files as hospitals really send them, good and bad."""

from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.readers import as_strings, read_table

SECRET = "Zaphod"


def table(path: Path, **changes) -> Table:
    return Table(source="parquet" if path.suffix == ".parquet" else "csv", path=str(path), **changes)


def read(path: Path, **changes) -> pl.DataFrame:
    return read_table(table(path, **changes)).collect()


def test_csv_comes_back_as_text_with_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffid,age,note\r\n7,61,"a, ""b"""\r\n8,,\r\n'.encode())
    assert read(path).rows() == [("1", "7", "61", 'a, "b"'), ("2", "8", None, None)]
    assert read(path).columns == [ROW, "id", "age", "note"]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,age\n7,61\n\n8,50\n\n")
    assert read(path)["id"].to_list() == ["7", "8"]


def test_a_declared_delimiter_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;age\n7;61,5\n")
    assert read(path, delimiter=";").rows() == [("1", "7", "61,5")]


def test_parquet_types_print_as_the_csv_would(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": [7, 8], "code": [2.0, float("nan")], "lab": [0.1, 3.0], "flag": [True, None]}).write_parquet(
        path
    )
    assert read(path).rows() == [("1", "7", "2", "0.1", "true"), ("2", "8", None, "3", None)]


BAD = {
    "binary": (bytes(range(256)) * 40, "binary"),
    "utf-16": ("id,age\n1,2\n".encode("utf-16"), "UTF-16"),
    "latin-1": (f"id,age\n{SECRET}é,2\n".encode("latin-1"), "not UTF-8"),
    "latin-1 header": ("id,âge\n1,2\n".encode("latin-1"), "not UTF-8"),
    "semicolons": (b"id;age\n1;2\n", "separated by ';'"),
    "tabs": (b"id\tage\n1\t2\n", r"separated by '\\t'"),
    "long row": (f"id,age\n1,2\n{SECRET},3,4\n".encode(), "line 3 has 3 fields, the header has 2"),
    "cut off": (f"id,age\n1,2\n{SECRET}".encode(), "line 3 has 1 fields, the header has 2"),
    "open quote": (f'id,age\n1,"2\n{SECRET},3\n'.encode(), "quote that is not closed"),
    "column twice": (b"id,age,age\n1,2,3\n", "columns 2 and 3 have the same name"),
    "no header": (b"\n1,2\n", "no column names"),
    "reserved name": (b"#row,age\n1,2\n", "may not be called '#row'"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unreadable_csv_is_named_and_quotes_no_patient(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy
    assert SECRET not in str(caught.value)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        read(tmp_path / "none.csv", get="Ask the registry office.")
    assert caught.value.remedy == "Ask the registry office."


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path, suffix: str) -> None:
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    with pytest.raises(UserError, match="the file is empty"):
        read(empty)
    folder = tmp_path / f"folder.{suffix}"
    folder.mkdir()
    with pytest.raises(UserError, match="not a file"):
        read(folder)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": list(range(100))}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a Parquet file"):
        read(path)


def test_nested_columns_are_refused() -> None:
    with pytest.raises(UserError, match="'labs' holds nested"):
        as_strings(pl.DataFrame({"labs": [[1, 2]]}), "somewhere")
