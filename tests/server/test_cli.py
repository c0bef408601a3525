"""What a user gets wrong is one sentence with its remedy, exit code 2, and no traceback."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from common.study import Study, read_study
from server.cli import main
from server.run_folder import create_run
from tests.command import Done, call


def wardround(*arguments: str | Path) -> Done:
    return call(main, *arguments)


def wardround_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def study_file(small_study: Callable[..., Study], tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(small_study().to_toml())
    return path


def test_plan_prints_the_hash_that_sites_approve(study_file: Path, small_study: Callable[..., Study]) -> None:
    done = wardround_process("plan", study_file)
    assert done.returncode == 0
    assert small_study().hash in done.stdout
    assert "local_steps = 2" in done.stdout


def test_plan_imports_no_torch(study_file: Path) -> None:
    code = "import sys; sys.argv = ['wardround', 'plan', sys.argv[1]]\nfrom server.cli import app\n" \
           "app(standalone_mode=False)\nassert 'torch' not in sys.modules and 'flwr' not in sys.modules"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(study_file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_refuses_lengths_that_the_model_cannot_hold(study_file: Path) -> None:
    changed(study_file, "max_prompt_tokens = 1024", "max_prompt_tokens = 2047")
    done = wardround("plan", study_file)
    assert done.returncode == 2
    assert "2,048 positions" in done.stderr and "SHA-256" not in done.stdout


def test_plan_says_which_number_of_processes_cannot_start(study_file: Path) -> None:
    for gpus, cannot in (("3", True), ("2", False)):
        done = wardround("plan", study_file, "--gpu", "a100-80gb", "--gpus", gpus)
        assert done.returncode == 0 and "Memory, estimated" in done.stdout
        assert (f"{gpus} processes cannot start" in done.stdout) == cannot


def test_plan_says_what_a_private_study_costs(
    small_study: Callable[..., Study], public_codebook: dict[str, str], tmp_path: Path
) -> None:
    cost = {"clip": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.02, "patients_per_step": 8, "accountant": "rdp"}
    private = small_study(
        questions=public_codebook,
        rounds={"rounds": 3, "local_steps": 5, "validation_patients": 0},
        privacy=cost,
    )
    assert private.privacy is not None
    path = tmp_path / "private.toml"
    path.write_text(private.to_toml())
    done = wardround("plan", path)
    assert done.returncode == 0, done.stderr
    assert f"epsilon {private.privacy.epsilon(15):.3f} at delta 1e-05" in done.stdout


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
        (["simulate", "STUDY", "--runs", "/proc/runs"], "nothing can be written here"),
    ],
)
def test_a_wrong_command_is_one_sentence(study_file: Path, arguments: list[str], says: str) -> None:
    done = wardround(*[str(study_file) if word == "STUDY" else word for word in arguments])
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_model_folder_that_is_none_is_named(study_file: Path, tmp_path: Path, tiny_model: Path) -> None:
    text = study_file.read_text()
    empty = tmp_path / "empty-model"
    empty.mkdir()
    for folder, says in (
        (tmp_path / "no-model", f"{tmp_path / 'no-model'} is not a folder"),
        (empty, f"{empty} holds no config.json"),
    ):
        study_file.write_text(text.replace(str(tiny_model), str(folder)))
        done = wardround("simulate", study_file, "--runs", tmp_path / "runs", "--arms", "base")
        assert done.returncode == 2
        assert says in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.fixture
def registry_file(tmp_path: Path, study_file: Path) -> Path:
    """A CSV hospital in the place of the study's site `a`."""
    sites = tmp_path / "sites"
    sites.mkdir()
    for name, file in (("a", "a.csv"), ("b", "b.csv")):
        features = [{"column": column, "name": column, "section": "S", "kind": "category"} for column in "xyz"]
        table = {"source": "csv", "path": f"../{file}", "get": "Ask the registry office."}
        values = {"site": name, "patient": "id", "table": table, "features": features}
        (sites / f"{name}.toml").write_text(tomli_w.dumps(values))
        rows = [f"{name}{n},{'uv'[n % 2]},{'uvw'[n % 3]},{'st'[n % 5 % 2]}" for n in range(60)]
        (tmp_path / file).write_text("\n".join(["id,x,y,z", *rows]))
    values = tomllib.loads(study_file.read_text())
    values["sites"] = {"train": ["a", "b"]}
    values["simulation"]["site_configs"] = str(sites)
    study_file.write_text(tomli_w.dumps(values))
    return tmp_path / "a.csv"


def halved(lines: list[str]) -> str:
    return "\n".join([*lines[:-1], lines[-1][:4]])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: None, "a.csv: there is no such file.\nAsk the registry office."),
        (lambda lines: "", "a.csv: the file is empty."),
        (halved, "a.csv: line 61 has 2 fields, the header has 4."),
        (lambda lines: "\n".join(line.rpartition(",")[0] for line in lines), "a.csv: there is no column 'z'."),
        (lambda lines: "\n".join([*lines, lines[-1]]), "one row per patient was declared, but 1 rows repeat"),
        (lambda lines: "\n".join([lines[0], *(f"b{line[1:]}" for line in lines[1:])]), "stand at more than one of"),
    ],
)
def test_a_faulty_registry_stops_a_run_before_it_begins(
    study_file: Path, registry_file: Path, tmp_path: Path, spoil: Callable[[list[str]], str | None], says: str
) -> None:
    text = spoil(registry_file.read_text().splitlines())
    if text is None:
        registry_file.unlink()
    else:
        registry_file.write_text(text)
    for command in ("simulate", "centralize"):
        done = wardround(command, study_file, "--runs", tmp_path / "runs")
        assert done.returncode == 2
        assert says in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 2
        assert not (tmp_path / "runs").exists()


def test_features_that_a_site_leaves_out_are_listed(study_file: Path, registry_file: Path, tmp_path: Path) -> None:
    lines = registry_file.read_text().splitlines()
    registry_file.write_text("\n".join([lines[0], *(f"{line.rpartition(',')[0]}," for line in lines[1:])]))
    done = wardround_process("simulate", study_file, "--runs", tmp_path / "runs", "--arms", "base")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a: left out: z: all values are missing" in done.stdout


def test_a_site_with_too_few_questions_is_named(study_file: Path, registry_file: Path, tmp_path: Path) -> None:
    changed(study_file, "prompts_per_step = 4", "prompts_per_step = 4000")
    done = wardround("simulate", study_file, "--runs", tmp_path / "runs", "--arms", "federated")
    assert done.returncode == 2
    assert "Site 'a' has" in done.stderr and "fewer than grpo.prompts_per_step = 4000" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_cache_that_cannot_be_written_is_refused(study_file: Path, tmp_path: Path, tiny_model: Path) -> None:
    values = tomllib.loads(study_file.read_text())
    values["model"] = {"base": "built-in"}
    values["sites"] |= {"unseen": [], "public": ["elsewhere"]}
    study_file.write_text(tomli_w.dumps(values))
    done = wardround("simulate", study_file, "--runs", tmp_path / "runs", "--cache", "/proc/models")
    assert done.returncode == 2
    assert "/proc/models: nothing can be written here" in done.stderr and "--cache" in done.stderr


def test_status_tells_a_finished_run_from_one_that_only_has_a_report(study_file: Path, tmp_path: Path) -> None:
    run = create_run(tmp_path, read_study(study_file), [1], ["base"], 0.0)
    assert wardround("report", run.path).returncode == 0
    looked = wardround("status", run.path)
    assert looked.returncode == 0 and looked.stdout.endswith("not finished\n")
    run.log().write("run_finished")
    assert wardround("status", run.path).stdout.splitlines()[-1] == "finished"


@pytest.mark.parametrize("command", ["simulate", "run"])
def test_a_run_that_another_process_works_on_is_refused(
    command: str, small_study: Callable[..., Study], tmp_path: Path
) -> None:
    run = create_run(tmp_path / "runs", small_study(), [1], ["base"], started=0.0)
    with run.alone():
        done = wardround_process(command, "--resume", run.path)
    assert done.returncode == 2 and "another process is at work on this run" in done.stderr
