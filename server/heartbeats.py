"""What sites say of their steps while they train: from the bulk channel's service, by a file, into the event log.

    PROGRESS/SITE.json      the last beat of a site (common/bulk/beat.py)
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.bulk.beat import Beat
from server.run_folder import EventLog, read_json, write_json

LOOK_S = 5.0


def keep(folder: Path, beat: Beat) -> None:
    """Note a beat of a site that has proved who it is."""
    write_json(folder / f"{beat.site}.json", beat.model_dump())


@dataclass
class Listener:
    """Writes a `site_progress` event for each beat of a run that was not there at the last look."""

    folder: Path
    run: str
    log: EventLog
    heard: dict[str, Beat] = field(default_factory=dict)

    def look(self) -> None:
        for note in sorted(self.folder.glob("*.json")):
            beat = Beat.model_validate(read_json(note))
            if beat.run == self.run and self.heard.get(beat.site) != beat:
                self.heard[beat.site] = beat
                self.log.write("site_progress", site=beat.site, round=beat.round, step=beat.step, steps=beat.steps)


@contextmanager
def listening(folder: Path, run: str, log: EventLog) -> Iterator[None]:
    """Follow the sites' beats while the rounds go on, beside them: a round waits in calls of its own.

    Args:
        folder: where the channel's service notes them.
    """
    listener, over = Listener(folder, run, log), threading.Event()

    def follow() -> None:
        while not over.wait(LOOK_S):
            listener.look()

    thread = threading.Thread(target=follow, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
