"""client -> common <- server, and registry -> questions -> tasks inside common: read off the source, and tried with the
server's code absent."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"client": {"server"}, "server": {"client"}, "common": {"client", "server"}}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """First part and line of every import, relative ones excepted (they stay in their package)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


LAYERS = ("registry", "questions", "tasks")
"""Of common, the lowest first: none imports one that stands after it."""
ABOVE = ("models", "grpo", "update", "evaluation")


def imported_rooms(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Room of common and line of every import from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "common":
            names = [f"common.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            if name.startswith("common."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_of_common_imports_one_above_it(layer: str) -> None:
    above = {*LAYERS[LAYERS.index(layer) + 1 :], *ABOVE}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports common.{room}"
        for path in sorted((ROOT / "common" / layer).rglob("*.py"))
        for room, line in imported_rooms(ast.parse(path.read_text(encoding="utf-8")))
        if room in above
    ]
    assert found == []


def test_an_import_from_above_would_be_seen() -> None:
    tree = ast.parse(
        "def f():\n    from common.tasks.asking import x\n    import common.grpo.head\nfrom common import study\n"
    )
    assert sorted(imported_rooms(tree)) == [("grpo", 3), ("study", 4), ("tasks", 2)]


def crossings(package: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8")))
        if name in FORBIDDEN[package]
    ]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_crosses(package: str) -> None:
    assert crossings(package) == []


def test_a_crossing_would_be_seen() -> None:
    tree = ast.parse("def f():\n    from server.fold import fold_mean\n    import client.app as a\n")
    assert list(imported(tree)) == [("server", 2), ("client", 3)]


def test_a_site_works_without_the_servers_code(tmp_path: Path) -> None:
    """What the site's image holds: client and common alone. The editable install's finder is left out (-I -S)."""
    for package in ("client", "common"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    libraries = [path for path in sys.path if path.endswith("-packages")]
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path), *libraries]!r}\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('server') is None, 'server is importable'\n"
        "import client.app, client.cli, client.join\n"
        "assert client.app.__file__.startswith(sys.path[0]), client.app.__file__\n"
        "print('ok')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "FLWR_HOME": str(tmp_path / "flower")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stderr
