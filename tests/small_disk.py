"""A disk that fills up: a file system in memory, of a few MiB, of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

FILLER = "filler"


def mount(folder: Path, mib: int) -> bool:
    line = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "wardround-test", str(folder)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@cache
def allowed() -> bool:
    """Root in a container may lack the right to mount."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if not mount(Path(folder), 1):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


needs_small_disk = pytest.mark.skipif(not allowed(), reason="a disk that fills up needs root and the right to mount")


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """What is there stays hidden until the end."""
    folder.mkdir(parents=True, exist_ok=True)
    assert mount(folder, mib)
    try:
        yield folder
    finally:
        # Lazily: a process that was stopped may still hold a file there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Take all room but so many bytes."""
    with (disk / FILLER).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass  # it is full
        file.truncate(max(0, file.tell() - leave))


def make_room(disk: Path) -> None:
    (disk / FILLER).unlink()
