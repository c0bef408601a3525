"""The parent of a site's app processes (client/warm.py), with an app of the test's in the place of Flower's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec

from client.executor import THREADS, WARM, WarmExecutor

APP = """
import json, os, sys, time
from pathlib import Path

def run_clientapp(runtime_api_address, token, insecure, certificates):
    ours = sorted(name for name in sys.modules if name.split(".")[0] in ("client", "common", "server"))
    told = {"pid": os.getpid(), "parent": os.getppid(), "name": Path("/proc/self/comm").read_text().strip(),
            "token": token, "ours": ours, "heard": sys.stdin.read(), "blas": os.environ.get("OPENBLAS_NUM_THREADS")}
    place = Path(runtime_api_address)
    place.with_suffix(".part").write_text(json.dumps(told))
    os.replace(place.with_suffix(".part"), place)
    time.sleep(float(token))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    package = tmp_path / "flwr" / "supernode" / "runtime"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parents[1]):
        (folder / "__init__.py").touch()
    (package / "run_clientapp.py").write_text(APP)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@contextmanager
def parent(environment: dict[str, str], *libraries: str) -> Iterator[subprocess.Popen[bytes]]:
    line = [sys.executable, "-P", str(WARM), *libraries]
    started = subprocess.Popen(line, stdin=subprocess.PIPE, env=environment, bufsize=0)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def give(started: subprocess.Popen[bytes], place: Path, seconds: float = 0.0) -> None:
    task = {"address": str(place), "token": str(seconds), "insecure": True, "root_certificates": None}
    assert started.stdin is not None
    started.stdin.write(json.dumps(task).encode() + b"\n")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def told(place: Path) -> dict[str, Any]:
    until(place.exists)
    return dict(json.loads(place.read_text()))


def test_each_task_has_a_process_of_its_own_that_knows_none_of_our_code(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with parent(environment, "json", "numpy") as started:
        for name in "ab":
            give(started, tmp_path / name)
        first, second = told(tmp_path / "a"), told(tmp_path / "b")
        assert first["pid"] != second["pid"]
        for one in (first, second):
            assert (one["parent"], one["name"], one["ours"], one["heard"]) == (started.pid, "flwr-clientapp", [], "")
            assert one["blas"] == os.environ.get("OPENBLAS_NUM_THREADS")
        until(lambda: not psutil.Process(started.pid).children())


def test_a_killed_app_leaves_its_parent_and_a_killed_parent_no_app(environment: dict[str, str], tmp_path: Path) -> None:
    with parent(environment) as started:
        give(started, tmp_path / "a", 100.0)
        os.kill(told(tmp_path / "a")["pid"], signal.SIGKILL)
        give(started, tmp_path / "b", 100.0)
        second = psutil.Process(told(tmp_path / "b")["pid"])
        started.kill()
        until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE)


def test_it_ends_with_whoever_gives_it_tasks(environment: dict[str, str]) -> None:
    with parent(environment) as started:
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(30) == 0


def test_libraries_that_start_threads_are_refused(environment: dict[str, str]) -> None:
    with parent(environment, "polars") as started:
        assert started.wait(30) == THREADS


def test_a_killed_parent_is_started_again_and_one_with_threads_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]
) -> None:
    """What is launched meanwhile is started as Flower starts it: here by a command of that name that notes it."""
    calls = tmp_path / "calls"
    (command := tmp_path / "flwr-clientapp").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def launch(executor: WarmExecutor, place: str) -> None:
        address = str(tmp_path / place)
        executor.launch(ExecutionSpec(TaskType.CLIENT_APP, address, "0", True, None, False, None, False, 1))

    monkeypatch.setattr("client.executor.libraries", lambda: ("json",))
    executor = WarmExecutor()
    launch(executor, "a")
    first = told(tmp_path / "a")["parent"]
    executor.parent.kill()
    executor.parent.wait()
    launch(executor, "by-flower")
    until(lambda: calls.exists() and "by-flower" in calls.read_text())
    launch(executor, "b")
    assert told(tmp_path / "b")["parent"] == executor.parent.pid != first
    executor.close()

    monkeypatch.setattr("client.executor.libraries", lambda: ("polars",))
    executor = WarmExecutor()
    refused = executor.parent
    assert refused.wait(30) == THREADS
    for place in ("c", "d"):
        launch(executor, place)
        assert executor.parent is refused
    until(lambda: all(f"/{place} " in calls.read_text() for place in "cd"))
