"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file beside `path`, then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    fill(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
