"""One process at a time, each a real one."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.lock import Held, only_one

HOLDER = """
import sys, time
from pathlib import Path
from common.lock import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the file until its input ends."""
    line = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_file_that_is_held_is_refused_in_time(lock: Path, holder: subprocess.Popen[str]) -> None:
    for wait_s in (0.0, 0.3):
        start = time.monotonic()
        with pytest.raises(Held), only_one(lock, wait_s):
            pass
        assert time.monotonic() - start >= wait_s


def test_a_killed_holder_lets_go(lock: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with only_one(lock, 0.0):
        pass


def test_who_waits_holds_it_next(lock: Path, holder: subprocess.Popen[str]) -> None:
    line = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as waiting:
        holder.communicate()
        assert waiting.stdout is not None and waiting.stdout.readline() == "held\n"
        waiting.communicate()
