"""What Flower ships to the sites: built by Flower's own bundler from our staged tree."""

import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from server.bundle import packages, stage_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(stage_bundle(tmp_path))))


def test_nothing_but_code(bundle: zipfile.ZipFile) -> None:
    names = set(bundle.namelist()) - {"pyproject.toml", ".info/CONTENT"}
    assert all(name.endswith(".py") and name.split("/")[0] in packages() for name in names)


def test_every_module_is_there(bundle: zipfile.ZipFile) -> None:
    modules = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in packages().items()
        for path in folder.rglob("*.py")
    }
    assert modules <= set(bundle.namelist())


def test_the_same_code_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (build_fab_from_disk(stage_bundle(tmp_path / name)) for name in ("one", "two"))
    assert first == second


def test_files_that_lie_in_the_tree_stay(tmp_path: Path) -> None:
    """The second wall: were a site's files in the staged tree, the bundler would still leave them out."""
    stage = stage_bundle(tmp_path)
    for name in ("site.toml", "patients.json", "common/patients.jsonl", "client/notes.md", "site_configs/a.toml"):
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text("patient 17")
    content = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(stage)))
    assert not [name for name in content.namelist() if b"patient 17" in content.read(name)]
