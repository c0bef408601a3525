"""How far a site is with a round's local steps: noted at the site after each of them."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "progress.json"
"""Beside the optimiser's state of the run."""


@dataclass(frozen=True)
class Progress:
    """Counts of steps and nothing else of the work."""

    study: str
    """Hash."""
    run: str
    round: int
    step: int
    """Local steps of the round that are done."""
    steps: int
    """Local steps that the round has."""
    time: float
    """When the last of them ended, in Unix seconds."""


def note(folder: Path, study: str, run: str, number: int, step: int, steps: int) -> Progress:
    """Write down that `step` of `steps` are done, in the run's folder. A loss by a crash costs nothing but the note."""
    progress = Progress(study, run, number, step, steps, time.time())
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(asdict(progress)))
    os.replace(part, folder / FILE)
    return progress


def read(folder: Path) -> Progress | None:
    """What was noted last in a run's folder."""
    path = folder / FILE
    return Progress(**json.loads(path.read_text())) if path.exists() else None
