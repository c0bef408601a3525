"""`wardround-site init`, from the table to the file and its refusals."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.init import site_name, write_draft
from client.site import read_site
from common.errors import UserError
from common.registry.registry import load_registry

SECRET = "Zaphod"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [f"p{n},{SECRET}{n},{20 + n},{n % 2},{'YN'[n % 2]}" for n in range(30)]
    path = tmp_path / "Klinik Nord.csv"
    path.write_text("\n".join(["patient_id,nickname,age_years,smoker,died", *lines]))
    return path


def test_a_file_is_written_that_the_other_commands_read(table: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--from", table.name])
    assert done.exit_code == 0, done.output
    out = Path("klinik-nord.toml")
    assert f"written: {out}" in done.output and SECRET not in done.output + out.read_text()
    site = read_site(out, Path())
    assert site.name == "klinik-nord" and site.registry.never == ("nickname",)
    assert load_registry(site.registry).frame.height == 30
    counted = {line[:22].strip(): line[22:] for line in done.output.splitlines()}
    assert (counted["number"], counted["category"], counted["not to be used"]) == ("1", "2", "1")
    assert int(counted["marked EDIT"]) == out.read_text().count("EDIT: ") > 0


def test_out_names_the_site_and_nothing_is_overwritten(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "sites" / "north.toml"
    with pytest.raises(UserError, match="no such folder"):
        write_draft(table.name, out, "", "")
    out.parent.mkdir()
    assert write_draft(table.name, out, "", "").path == out
    assert read_site(out, Path()).name == "north"
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_draft(table.name, out, "", "")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "sheet", "query", "message"),
    [
        ("none.csv", "", "", "no such file"),
        ("Klinik Nord.csv", "S", "", "sheet belongs to"),
        ("stays.db", "", "", "needs a query"),
        ("postgresql://u:secret@h/d", "", "SELECT 1", "server holds a password"),
    ],
)
def test_impossible_requests_are_refused(table: Path, place: str, sheet: str, query: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write_draft(place, Path("out.toml"), sheet, query)
    assert "secret" not in str(caught.value) and not Path("out.toml").exists()


@pytest.mark.parametrize(
    ("stem", "name"), [("Klinik Nord", "klinik-nord"), ("_2024_ICU_", "2024-icu"), ("병원", "hospital")]
)
def test_a_file_name_becomes_a_site_name(stem: str, name: str) -> None:
    assert site_name(stem) == name
