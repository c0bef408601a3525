"""Site files: what they may say, how they extend each other, where paths come from."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.registry.config import read_registry_config

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
    ],
)
def test_impossible_declarations_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BASE
    with pytest.raises(UserError, match=message) as caught:
        read_registry_config(write(tmp_path, base=BASE.replace(old, new)))
    assert str(tmp_path / "one.toml") in caught.value.what
    assert caught.value.remedy
