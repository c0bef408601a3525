"""Site files: what they may say, how they extend each other, where paths come from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import UserError
from common.registry.cleaning.declared import Clean
from common.registry.config import Table, read_registry_config

BASE = """
patient = "id"
features = [
  { column = "a", name = "A", section = "S", kind = "category" },
  { column = "b", name = "B", section = "S", kind = "number" },
]
[table]
source = "csv"
path = "${WARDROUND_TEST_TABLE:-data/table.csv}"
missing = ["?"]
"""
SITE = """
extends = "_base.toml"
site = "one"
[table]
where = { ward = ["x"] }
"""

OUTCOME = """
[[outcomes]]
column = "b"
question = "Will it?"
at = "baseline"
[table]"""


def write(folder: Path, site: str = SITE, base: str = BASE) -> Path:
    (folder / "_base.toml").write_text(base)
    (folder / "one.toml").write_text(site)
    return folder / "one.toml"


def test_a_site_extends_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_TEST_TABLE", raising=False)
    config = read_registry_config(write(tmp_path))
    assert (config.site, config.table.missing, config.table.where) == ("one", ("?",), {"ward": ("x",)})
    assert config.table.path == str(tmp_path / "data" / "table.csv")


def test_the_environment_moves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_TEST_TABLE", "/elsewhere/table.csv")
    assert read_registry_config(write(tmp_path)).table.path == "/elsewhere/table.csv"


def test_a_needed_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARDROUND_TEST_TABLE", raising=False)
    with pytest.raises(UserError, match="needs the environment variable WARDROUND_TEST_TABLE"):
        read_registry_config(write(tmp_path, base=BASE.replace(":-data/table.csv", "")))


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extends itself through _base\.toml"):
        read_registry_config(write(tmp_path, base='extends = "one.toml"\n' + BASE))


def test_a_dictionary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"_other\.toml: there is no such file"):
        read_registry_config(write(tmp_path, site=SITE.replace("_base", "_other")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('column = "b"', 'column = "a"', "'a' is declared twice"),
        ('name = "B"', 'name = "A"', "two features named 'A'"),
        ('patient = "id"', 'patient = "a"', "patient column 'a' is declared as a feature"),
        ('column = "b"', 'column = "patient"', "may not be called 'patient'"),
        ('patient = "id"', 'patient = "id"\nnever = ["b"]', "'b' is both a feature and in `never`"),
        ('patient = "id"', 'patient = "id"\npatients = 3', "no setting 'patients'"),
        ('patient = "id"', 'patient = "#row"\none_row_per_patient = false', "one row per patient"),
        ('kind = "number"', 'kind = "float"', r"features\.1\.kind = 'float'"),
        ('source = "csv"', 'source = "synthetic"', "go together"),
        ('path = "${WARDROUND_TEST_TABLE:-data/table.csv}"', "", "table.path is empty"),
        ('missing = ["?"]', 'delimiter = "||"', r"table\.delimiter = '\|\|'"),
        ('kind = "number"', 'kind = "number", known = "later"', r"'b' is known at 'later', which is not among"),
        ('patient = "id"', 'patient = "id"\ntimes = ["baseline", "baseline"]', "names a moment twice"),
        ("[table]", OUTCOME.replace('"b"', '"c"'), "'c' is not a declared feature"),
        ("[table]", OUTCOME.replace('"baseline"', '"dawn"'), "no moment 'dawn'"),
        ("[table]", OUTCOME, "'b' is known at 'baseline', not after its time of prediction"),
    ],
)
def test_impossible_declarations_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BASE
    with pytest.raises(UserError, match=message) as caught:
        read_registry_config(write(tmp_path, base=BASE.replace(old, new)))
    assert str(tmp_path / "one.toml") in caught.value.what
    assert caught.value.remedy


def tables(**table: str) -> Table:
    return Table.model_validate(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"source": "csv", "path": "a", "sheet": "S"}, "sheet belongs to source = 'excel'"),
        ({"source": "csv", "path": "a", "query": "SELECT 1"}, "query and server belong to source = 'sql'"),
        ({"source": "excel", "path": "a", "server": "postgresql://h/d"}, "query and server belong to source = 'sql'"),
        ({"source": "sql", "path": "a", "query": " "}, "needs a query"),
        ({"source": "sql", "query": "SELECT 1"}, "either path"),
        ({"source": "sql", "query": "SELECT 1", "path": "a", "server": "postgresql://h/d"}, "either path"),
        ({"source": "sql", "query": "SELECT 1", "server": "mysql://h/d"}, "does not begin with postgresql://"),
        ({"source": "sql", "query": "SELECT 1", "server": "postgresql://u:secret@h/d"}, "server holds a password"),
        (
            {"source": "sql", "query": "SELECT 1", "server": "postgresql://u:${A:-secret}@h/d"},
            "server holds a password",
        ),
        (
            {"source": "sql", "query": "SELECT 1", "server": "postgresql://h/d?password=secret"},
            "server holds a password",
        ),
    ],
)
def test_a_source_and_its_place_belong_together(table: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tables(**table)


def test_a_password_is_neither_read_into_the_declaration_nor_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_TEST_PASSWORD", "marvin")
    server = "postgresql://reader:${WARDROUND_TEST_PASSWORD}@db.example:5432/icu?sslmode=require"
    base = BASE.replace('path = "${WARDROUND_TEST_TABLE:-data/table.csv}"', f'server = "{server}"\nquery = "SELECT 1"')
    table = read_registry_config(write(tmp_path, base=base.replace('"csv"', '"sql"'))).table
    assert "marvin" not in repr(table) and table.server == server
    assert table.place == "postgresql://db.example:5432/icu"
    with pytest.raises(UserError, match="server holds a password") as caught:
        read_registry_config(
            write(tmp_path, base=base.replace("${WARDROUND_TEST_PASSWORD}", "marvin").replace('"csv"', '"sql"'))
        )
    assert "marvin" not in str(caught.value)


def test_a_site_cleans_a_shared_feature_in_its_own_way(tmp_path: Path) -> None:
    own = SITE + '[clean.b]\nconvert = { unit = "mg/dL", factor = 88.4 }\n'
    config = read_registry_config(write(tmp_path, own))
    assert config.features[1].clean.convert is not None and config.features[0].clean == Clean()
    with pytest.raises(UserError, match="names 'c', which is no feature"):
        read_registry_config(write(tmp_path, SITE + "[clean.c]\nignore_case = true\n"))
    with pytest.raises(UserError, match="'b' is a number, to which clean.ignore_case does not apply"):
        read_registry_config(write(tmp_path, SITE + "[clean.b]\nignore_case = true\n"))


def test_an_encoding_belongs_to_text_files(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no encoding 'klingon'"):
        Table(source="csv", path="t.csv", encoding="klingon")
    with pytest.raises(ValidationError, match="belongs to CSV and SQLite"):
        Table(source="parquet", path="t.parquet", encoding="cp1252")


WINDOWS = """
  { column = "c0", name = "C", section = "T0", kind = "number", variable = "c" },
  { column = "c1", name = "C", section = "T1", kind = "number", variable = "c" },
]
[table]"""
VARIABLES = BASE.replace("]\n[table]", WINDOWS)


@pytest.mark.parametrize(
    ("wrong", "instead", "message"),
    [
        ('section = "T1", kind = "number"', 'section = "T1", kind = "category"', "of another kind, unit or ordinal"),
        ('column = "a"', 'column = "c"', "'c' has the name of a variable"),
        ('name = "C", section = "T1"', 'name = "D", section = "T0"', "two columns in section 'T0'"),
    ],
)
def test_columns_of_a_variable_are_one_quantity(tmp_path: Path, wrong: str, instead: str, message: str) -> None:
    assert len(read_registry_config(write(tmp_path, base=VARIABLES)).features) == 4
    with pytest.raises(UserError, match=message):
        read_registry_config(write(tmp_path, base=VARIABLES.replace(wrong, instead)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (OUTCOME.replace("[table]", OUTCOME), "two outcomes ask for the column 'b'"),
        (OUTCOME.replace('"baseline"', '"baseline"\ntask = "forecast"\nvalues = { x = "y" }'), "values belong to task"),
        (OUTCOME.replace('column = "b"', 'column = "c"\nvalues = { one = "yes", too = "no" }'), "'too' is not among"),
    ],
)
def test_an_outcome_that_cannot_be_asked_is_refused(tmp_path: Path, more: str, message: str) -> None:
    late = 'kind = "number", known = "outcome" },\n  { column = "c", name = "C", section = "S", kind = "category", '
    late += 'known = "outcome", values = { "1" = "one", "2" = "two" } }'
    base = BASE.replace('kind = "number" }', late)
    assert len(read_registry_config(write(tmp_path, base=base.replace("\n[table]", OUTCOME))).outcomes) == 1
    with pytest.raises(UserError, match=message):
        read_registry_config(write(tmp_path, base=base.replace("\n[table]", more)))
