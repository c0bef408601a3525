"""From a table to a site file that reads back and holds no patient's value."""

from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import ROW, RegistryConfig, Table, read_registry_config
from common.registry.drafting.draft import describe, draft
from common.registry.registry import load_registry

SECRETS = ("Zaphod", "Betelgeuse", "4711.25", "1977-05-25", "Vogon")
HEADER = "case_no;Surname;Age (years);Weight (kg);crp;ward;dm;onset_date;onset_time;died"


def rows() -> list[str]:
    lines = [
        f"c{n};{'Zaphod' if n == 3 else f'Name{n}'};{20 + n};{50 + n / 2};{'<5' if n % 2 else n};"
        f"{('lung', 'Lung', 'Betelgeuse')[n % 3]};{('Y', 'N', 'NA')[n % 3]};"
        f"2024-03-{1 + n % 28:02d};{n % 24:02d}:30;{('Y', 'N')[n % 2]}"
        for n in range(40)
    ]
    return [*lines, "c99;Vogon;61;4711.25;7;lung;Y;1977-05-25;10:30;Y"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "Our table.csv"
    file.write_text("\n".join([HEADER, *rows()]))
    return file


def read_back(text: str, folder: Path) -> RegistryConfig:
    (folder / "north.toml").write_text(text)
    return read_registry_config(folder / "north.toml")


def test_a_draft_reads_back_and_loads_as_it_is(path: Path, tmp_path: Path) -> None:
    text, _ = draft(describe(str(path)), "north", tmp_path)
    config = read_back(text, tmp_path)
    assert (config.site, config.patient, config.never) == ("north", "case_no", ("Surname",))
    features = {feature.column: feature for feature in config.features}
    assert (features["Age (years)"].name, features["Age (years)"].unit) == ("Age", "years")
    assert features["died"].known == "outcome" and features["died"].section == "Outcome"
    assert features["crp"].clean.messy == "keep" and features["ward"].clean.ignore_case
    assert features["onset_date"].clean.time == "onset_time" and "onset_time" not in features
    assert config.words.yes == ("yes", "y") and config.table.missing == ("", "NA")
    assert load_registry(config).frame.height == 41


def test_no_value_of_a_patient_stands_in_it(path: Path, tmp_path: Path) -> None:
    text, _ = draft(describe(str(path)), "north", tmp_path)
    assert [secret for secret in SECRETS if secret.lower() in text.lower()] == []
    assert 'path = "Our table.csv"' in text and text.count("EDIT: ") > 3


def test_names_that_any_table_may_have_are_written_as_toml(tmp_path: Path) -> None:
    odd = ['a"b', "back\\slash", "tab\tname", "x = 1 # no", "Gewicht (kg)", "Gewicht [kg]", "[]", "patient"]
    table = pl.DataFrame({name: [f"{n * (place + 2)}.5" for n in range(30)] for place, name in enumerate(odd)})
    table.write_parquet(tmp_path / "odd.parquet")
    text, _ = draft(describe(str(tmp_path / "odd.parquet")), "odd", tmp_path)
    config = read_back(text, tmp_path)
    assert config.patient == "patient"
    assert [feature.column for feature in config.features] == odd[:-1]
    assert load_registry(config).frame.height == 30


def test_without_a_patient_column_a_row_is_one(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("age\tsex\n61\tm\n70\tf\n55\tf\n")
    text, _ = draft(describe(str(tmp_path / "t.tsv")), "t", tmp_path)
    assert read_back(text, tmp_path).patient == ROW and "no column is named like a patient's" in text


def test_repeated_and_missing_patients_are_told(tmp_path: Path) -> None:
    lines = [f"{'' if n == 5 else n // 2},{n},{n * 2}" for n in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["patient,age,map", *lines]))
    text, _ = draft(describe(str(tmp_path / "t.csv")), "t", tmp_path)
    assert not read_back(text, tmp_path).one_row_per_patient
    assert "empty in 1 rows" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("61,2.5,Zaphod\n70,3.5,Vogon\n", "seems to hold values, not names"),
        ("id,age\n", "has no rows"),
        ("id,age\n1,5\n2,6\n", "fewer than two columns"),
    ],
)
def test_a_table_that_gives_no_draft_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        draft(describe(str(tmp_path / "t.csv")), "t", tmp_path)
    assert caught.value.remedy and not any(word in str(caught.value) for word in ("61", "Zaphod"))


def test_the_ending_tells_the_source(tmp_path: Path) -> None:
    assert describe("a.xlsx", sheet="S") == Table(source="excel", path=str(Path("a.xlsx").resolve()), sheet="S")
    assert describe("a.db", query="SELECT 1").source == "sql"
    server = "postgresql://u:${PASSWORD}@h/d"
    assert describe(server, query="SELECT 1") == Table(source="sql", server=server, query="SELECT 1")
    with pytest.raises(UserError, match="does not tell what kind"):
        describe("a.docx")


@pytest.mark.parametrize(
    ("encoding", "header"),
    [
        ("utf-8", "환자번호;나이;성별"),
        ("utf-16", "환자번호;나이;성별"),
        ("utf-16-le", "patient;age;sex"),
        ("cp949", "환자번호;나이;성별"),
        ("cp1252", "Pat-Nr;Größe;Geschlecht für Prüfung"),
    ],
)
def test_the_encoding_is_guessed_and_marked(tmp_path: Path, encoding: str, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join([header, *(f"p{n};{40 + n};{'mw'[n % 2]}" for n in range(30))]).encode(encoding))
    table = describe(str(path))
    assert (table.encoding, table.delimiter) == (encoding, ";")
    text, seen = draft(table, "t", tmp_path)
    assert ("EDIT: a guess" in text) is (encoding != "utf-8")
    assert {column.column for column in seen} <= set(header.split(";"))
    read_back(text, tmp_path)
