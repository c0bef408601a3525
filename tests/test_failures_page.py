"""docs/failures.md: the tests that it names are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "failures.md"


def defined_in(file: str) -> set[str]:
    body = ast.parse((ROOT / file).read_text()).body
    return {part.name for part in body if isinstance(part, ast.FunctionDef)}


def test_every_failure_says_which_test_plays_it_or_that_none_does() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    played = [cells[-1] for cells in rows if cells[-1] != "played by"]
    assert len(rows) - len(played) == 4 and {len(cells) for cells in rows} == {5}
    assert [cell for cell in played if not re.match(r"`tests/|the same test|not played", cell)] == []
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", " ".join(played))
    assert len(named) == " ".join(played).count("`tests/")
    assert [name for file, name in named if name not in defined_in(file)] == []
