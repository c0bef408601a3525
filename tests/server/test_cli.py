"""What a user gets wrong is one sentence with its remedy, exit code 2, and no traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.study import Study


def wardround(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def study_file(small_study: Callable[..., Study], tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(small_study().to_toml())
    return path


def test_plan_prints_the_hash_that_sites_approve(study_file: Path, small_study: Callable[..., Study]) -> None:
    done = wardround("plan", study_file)
    assert done.returncode == 0
    assert small_study().hash in done.stdout
    assert "local_steps = 2" in done.stdout


def test_plan_imports_no_torch(study_file: Path) -> None:
    code = "import sys; sys.argv = ['wardround', 'plan', sys.argv[1]]\nfrom server.cli import app\n" \
           "app(standalone_mode=False)\nassert 'torch' not in sys.modules and 'flwr' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(study_file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("local_steps = 2", "local_step = 2", "there is no setting 'rounds.local_step'"),
        ("local_steps = 2", "local_steps = 0", "rounds.local_steps = 0"),
        ("local_steps = 2", "local_steps = 'two'", "rounds.local_steps = 'two'"),
        ("local_steps = 2", "local_steps = 2\nquorum = 9", "rounds.quorum is 9 but sites.train names 2"),
        ('"a",', '"a",\n    "nobody",', "nobody.toml: there is no such file"),
        ("local_steps = 2", "local_steps =", "not valid TOML"),
    ],
)
def test_a_wrong_study_is_one_sentence(study_file: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    done = wardround("simulate", changed(study_file, old, new), "--runs", tmp_path / "runs")
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate"], "Give either a study file or --resume RUN."),
        (["simulate", "STUDY", "--arms", "federated,magic"], "there is no arm 'magic'"),
        (["simulate", "STUDY", "--engine", "steam"], "there is no such engine"),
        (["simulate", "--resume", "nowhere"], "nowhere: this is not a run folder."),
        (["status", "nowhere"], "nowhere: this is not a run folder."),
        (["report", "nowhere"], "nowhere"),
        (["plan", "nowhere.toml"], "nowhere.toml: there is no such file."),
        (["simulate", "STUDY", "--runs", "/proc/runs"], "a run cannot be written here"),
    ],
)
def test_a_wrong_command_is_one_sentence(study_file: Path, arguments: list[str], says: str) -> None:
    done = wardround(*[str(study_file) if word == "STUDY" else word for word in arguments])
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_model_folder_that_is_none_is_named(study_file: Path, tmp_path: Path, tiny_model: Path) -> None:
    changed(study_file, str(tiny_model), str(tmp_path / "no-model"))
    done = wardround("simulate", study_file, "--runs", tmp_path / "runs", "--arms", "base")
    assert done.returncode == 2
    assert f"{tmp_path / 'no-model'} is not a folder" in done.stderr.replace("\n", "")
