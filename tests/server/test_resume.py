"""kill -9 at any moment, then --resume: the same final numbers. Real processes, a real run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.study import Study
from server.run_folder import read_events

ARMS = "base,federated,centralized"


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def numbers(run: Path) -> Any:
    """The result without what a clock decides."""
    result = json.loads((run / "result.json").read_text())
    del result["seconds"]
    return result


def models(run: Path) -> dict[str, str]:
    rounds = sorted(run.rglob("round-*.json"))
    return {str(path.relative_to(run)): json.loads(path.read_text())["model_sha256"] for path in rounds}


def only_run(runs: Path) -> Path:
    (run,) = [path for path in runs.iterdir() if path.is_dir()]
    return run


def rounds_seen(runs: Path) -> int:
    logs = list(runs.glob("*/events.jsonl"))
    return sum(e["event"] == "round_finished" for log in logs for e in read_events(log))


def alive(group: int) -> bool:
    listing = subprocess.run(["ps", "-eo", "ppid=,pid=,args="], capture_output=True, text=True, check=True).stdout
    return any(f"parent_pid={group}" in line for line in listing.splitlines())


@pytest.fixture
def study_file(small_study: Callable[..., Study], tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(small_study().to_toml())
    return path


def test_a_killed_run_goes_on_to_the_same_numbers(study_file: Path, tmp_path: Path) -> None:
    whole = finish(start("simulate", study_file, "--runs", tmp_path / "whole", "--arms", ARMS))
    untouched = only_run(tmp_path / "whole")
    assert str(untouched / "report.html") in whole.replace("\n", "")

    runs = tmp_path / "killed"
    process = start("simulate", study_file, "--runs", runs, "--arms", ARMS)
    deadline = time.monotonic() + 200
    while rounds_seen(runs) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    run = only_run(runs)
    assert not (run / "result.json").exists()
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid), "workers outlive the process that started them"

    finish(start("simulate", "--resume", run))
    assert models(run) == models(untouched)
    assert numbers(run) == numbers(untouched)


@pytest.mark.slow
def test_a_killed_worker_stops_the_run_and_loses_nothing(study_file: Path, tmp_path: Path) -> None:
    """The kill falls on a worker: the command says so, and a resume goes on."""
    runs = tmp_path / "runs"
    process = start("simulate", study_file, "--runs", runs, "--arms", "federated")
    deadline = time.monotonic() + 200
    while rounds_seen(runs) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    listing = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    for parent, child in pairs:
        if parent == process.pid:
            os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    finish(start("simulate", "--resume", only_run(runs)))
    assert json.loads((only_run(runs) / "result.json").read_text())["complete"]
