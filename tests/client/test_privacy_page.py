"""docs/privacy.md says what the code does: its table is the allow-list, its commands run, its words find tampering."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.allowed import ALLOWED
from client.audit import Passage, append
from client.cli import app
from client.egress import REFUSALS
from common.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"


def test_the_table_of_what_leaves_is_the_allow_list() -> None:
    section = PAGE.partition("## What leaves\n")[2].partition("\n## ")[0]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:4]] for line in section.splitlines() if "|" in line]
    told, kind = set(), ""
    for reply, field, words in rows[2:]:
        kind = reply or kind
        told.add((kind, field, words))
    assert told == {
        (kind, f"{record}.{field}", of.words)
        for kind, records in ALLOWED.items()
        for record, fields in records.items()
        for field, of in fields.items()
    }


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a site's file and a log of three lines, as the page's commands name them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.toml").write_text(
        f'extends = "{REGISTRY}"\nsite = "a"\n[synthetic]\npatients = 40\nseed = 1\n'
    )
    for number in range(3):
        append(tmp_path / "STATE" / "audit.jsonl", Passage("Evaluated", "5" * 64, "a-run", number, 100, "f" * 64))
    return tmp_path


def blocks(language: str) -> str:
    section = PAGE.partition("**To verify it**")[2].partition("\n## ")[0]
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL))


def audit(*options: str) -> str:
    result = CliRunner().invoke(app, ["audit", "site.toml", "--state", "STATE", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def by_itself(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", blocks("python")], cwd=folder, capture_output=True, text=True)


def test_the_pages_commands_verify_a_log(site: Path) -> None:
    commands = blocks("sh").splitlines()
    assert commands and all(line.startswith("wardround-site audit site.toml --state STATE") for line in commands)
    for line in commands:
        told = audit(*line.split()[5:])
    head = json.loads((site / "STATE" / "audit.jsonl").read_text().splitlines()[-1])["hash"]
    assert f"whole, 3 lines; head {head}" in told.replace("\n", " ")
    assert by_itself(site).stdout.strip() == f"whole, head {head}"
    audit("--holds", head)

    copy = site / "audit-copy.jsonl"
    copy.write_text(copy.read_text().replace('"round": 1', '"round": 7'))
    assert by_itself(site).stderr.strip().endswith("AssertionError: 1")

    log = site / "STATE" / "audit.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="lines are gone"):
        audit("--holds", head)


def test_every_refusal_is_a_sentence_without_a_place_for_values() -> None:
    assert all(text and "{" not in text and "%" not in text for text in REFUSALS.values())
