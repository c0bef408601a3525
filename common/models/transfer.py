"""A model folder on its way to a site: its files as named byte arrays, and a hash over all of them."""

import hashlib
import os
import shutil
from pathlib import Path

from flwr.app import Array, ArrayRecord

from common.errors import UserError

FILE = "file"


class BadFolder(UserError):
    """The files are not those that were announced."""


def folder_files(folder: Path) -> list[Path]:
    """The plain files directly in the folder, sorted by name (model folders have no subfolders that matter)."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def folder_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for path in folder_files(folder):
        total.update(f"{path.name}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def pack_folder(folder: Path) -> ArrayRecord:
    arrays = {}
    for path in folder_files(folder):
        data = path.read_bytes()
        arrays[path.name] = Array("uint8", (len(data),), FILE, data)
    return ArrayRecord(arrays)


def unpack_folder(record: ArrayRecord, place: Path, expected: str) -> Path:
    """Write the files to `place`, which appears whole or not at all.

    Raises:
        BadFolder: a name that is not a plain file name, or a hash that is not the expected one.
    """
    if (place / "config.json").is_file() and folder_sha256(place) == expected:
        return place
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, array in record.items():
        if Path(name).name != name or name.startswith(".") or array.stype != FILE:
            shutil.rmtree(part)
            raise BadFolder("The model folder holds a name that is no plain file.", "Send plain files only.")
        (part / name).write_bytes(array.data)
    if folder_sha256(part) != expected:
        shutil.rmtree(part)
        raise BadFolder("The model folder is not the announced one.", "Send it again.")
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    return place
