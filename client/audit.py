"""A hash-chained log of everything that left: each line holds the hash of the line before.

Changing, removing or reordering a line breaks the chain at that line. The line is on the disk before the
reply is handed over, so what left is in the log; a line cut short by a kill stands for nothing that left.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

START = "0" * 64


@dataclass(frozen=True)
class Passage:
    """One reply that went through the door."""

    kind: str
    study: str
    run: str
    round: int
    bytes: int
    sha256: str
    """Over the reply's records as they are sent."""
    detail: str = ""
    """What else the site should know: counts held back, the codebook that questions were built with."""


def digest(entry: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    return lines[:-1]  # what follows the last newline is empty, or a line that a kill cut short


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time: a site may answer several messages at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append(path: Path, passage: Passage) -> str:
    """Write a passage durably; returns its place in the chain (SHA-256)."""
    with locked(path):
        return extend(path, asdict(passage))


def extend(path: Path, values: dict[str, object]) -> str:
    """Write a line durably; returns its place in the chain (SHA-256). The caller holds the lock."""
    lines = whole_lines(path)
    previous = json.loads(lines[-1])["hash"] if lines else START
    entry: dict[str, object] = {"n": len(lines), "time": time.time(), **values, "previous": previous}
    entry["hash"] = digest(entry)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(len("".join(f"{line}\n" for line in lines).encode()))
        file.seek(0, os.SEEK_END)
        file.write((json.dumps(entry, sort_keys=True) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    return str(entry["hash"])


def first_broken(path: Path) -> int | None:
    """Number of the first line that does not continue the chain; None where all do."""
    previous = START
    for n, line in enumerate(whole_lines(path)):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return n
        if not isinstance(entry, dict):
            return n
        claimed = entry.pop("hash", None)
        if entry.get("n") != n or entry.get("previous") != previous or digest(entry) != claimed:
            return n
        previous = claimed
    return None
