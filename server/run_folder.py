"""Every durable thing of a run, and how a run that was killed finds its place again.

    RUN/
      study.toml              the resolved study
      codebook.toml           where the study names a codebook file
      run.json                versions, seeds, arms
      events.jsonl            what happened, one JSON object a line
      seed-1/                 one folder a seed
        questions/            held_out.parquet, unseen_sites.parquet
        federated/            a RoundStore and the answered frames
        local/SITE/, centralized/, base/, ...
      result.json, examples.json, report.html

A file is written beside its place, flushed to the disk and renamed, so what has its final name is whole. A
round is finished when its `round-0007.json` has its name; whatever else lies there is written again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import named_disk_faults
from common.errors import UserError
from common.lock import Held, only_one
from common.study import Study, read_study, with_codebook_file
from common.versions import versions

FREE_BYTES = 512 * 1024 * 1024


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then give it its name; the folder is made if needed.

    Raises:
        UserError: the disk is full, or `path` may not be written; the old file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with named_disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class EventLog:
    """Append-only JSON lines; several processes may write, a line is one write.

    A line cut short by a kill is ended by the next writer and skipped by readers.
    """

    def __init__(self, path: Path, **always: Any) -> None:
        """`always`: fields that every event of this writer carries (arm, seed)."""
        self.path = path
        self.always = always
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        entry = {"time": time.time(), "event": event, **self.always, **fields}
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        with named_disk_faults(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events in order; a line that a kill cut short is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def check_writable(folder: Path, need: int = FREE_BYTES, option: str = "--runs") -> None:
    """Refuse a folder that cannot hold what will be written, before any work is done.

    Args:
        option: what a user gives another folder with.

    Raises:
        UserError: not writable, or less than `need` bytes free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        sync(probe)
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"{folder}: nothing can be written here ({error.strerror}).", f"Give {option} a folder you may write to."
        ) from None
    if free < need:
        raise UserError(
            f"{folder}: {free // 2**20} MiB are free, a run needs {need // 2**20} MiB.",
            f"Free some space or give {option} a folder on another disk.",
        )


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def log(self, **always: Any) -> EventLog:
        return EventLog(self.events, **always)

    def study(self) -> Study:
        return read_study(self.path / "study.toml")

    def about(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def seed(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"

    def arm(self, seed: int, arm: str, site: str = "") -> Path:
        folder = self.seed(seed) / arm
        return folder / site if site else folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, so that no second command works on the run.

        Raises:
            UserError: another process does.
        """
        try:
            with only_one(self.path / ".lock", 0.0):
                yield
        except Held:
            raise UserError(
                f"{self.path}: another process is at work on this run.", "Wait for it, or stop it first."
            ) from None


def create_run(
    runs: Path, study: Study, seeds: list[int], arms: list[str], started: float, engine: str = "in-process"
) -> RunFolder:
    """Make `runs/<study>-<time>/` with its study and particulars.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    check_writable(runs)
    stem = f"{study.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(started))}"
    path, n = runs / stem, 1
    while True:
        try:
            path.mkdir()
            break
        except FileExistsError:
            n += 1
            path = runs / f"{stem}-{n}"
    folder = RunFolder(path.resolve())
    if study.questions.codebook_file is not None:
        kept = folder.path / "codebook.toml"
        write_text(kept, study.questions.codebook_file.read_text(encoding="utf-8"))
        study = with_codebook_file(study, kept)
    write_text(folder.path / "study.toml", study.to_toml())
    about = {
        "study": study.name,
        "study_hash": study.hash,
        "seeds": seeds,
        "arms": arms,
        "engine": engine,
        "started": started,
        "versions": versions(),
    }
    write_json(folder.path / "run.json", about)
    return folder


def open_run(path: Path) -> RunFolder:
    """Find a run to look at.

    Raises:
        UserError: this is no run folder, or its files are not whole.
    """
    if not (path / "run.json").is_file() or not (path / "study.toml").is_file():
        raise UserError(f"{path}: this is not a run folder.", "Give a folder that `wardround simulate` made.")
    folder = RunFolder(path.resolve())
    try:
        folder.about()
    except ValueError:
        raise UserError(f"{path / 'run.json'}: not valid JSON.", "Put the file back, or start a new run.") from None
    return folder


def reopen_run(path: Path) -> RunFolder:
    """Find a run to go on with.

    Raises:
        UserError: this is no run folder, or it cannot be written.
    """
    folder = open_run(path)
    check_writable(path)
    return folder
