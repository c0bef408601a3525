"""What the bulk channel may move: announcements on the disk, written by a run and read by the channel's service.

    BULK/
      SITE/
        up-SHA256.json      an upload that is expected; up-SHA256.payload once it is whole
        down-SHA256.json    a download that is offered, and where the payload lies

The service keeps nothing else, so that it may be killed and started again at any time. What is not announced any more,
because its round is over, is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.bulk.opening import Transfer
from common.transfer.manifest import Manifest, manifest_from
from server.run_folder import write_json


@dataclass(frozen=True)
class Announced:
    transfer: Transfer
    manifest: Manifest
    payload: Path
    """An upload: where it lies once it is whole. A download: the file to send."""


@dataclass(frozen=True)
class Spool:
    """Args: `folder`: one for all runs of a coordinator."""

    folder: Path

    def note(self, transfer: Transfer) -> Path:
        return self.folder / transfer.site / f"{transfer.direction}-{transfer.sha256}.json"

    def received(self, transfer: Transfer) -> Path:
        return self.note(transfer).with_suffix(".payload")

    def expect(self, transfer: Transfer, manifest: Manifest) -> Path:
        """Let a site upload; returns where the payload will be. What came of an upload that was begun before, and is
        not announced any more, is deleted."""
        place = self.received(transfer)
        self.write(Announced(transfer, manifest, place))
        for part in place.parent.glob(".up-*.payload.*.part"):
            if not place.with_name(part.name[1:].split(".")[0]).with_suffix(".json").exists():
                part.unlink(missing_ok=True)
        return place

    def offer(self, transfer: Transfer, manifest: Manifest, payload: Path) -> None:
        """Let a site download a file of this machine."""
        self.write(Announced(transfer, manifest, payload.resolve()))

    def write(self, announced: Announced) -> None:
        values = {
            "transfer": announced.transfer.model_dump(),
            "manifest": announced.manifest.to_dict(),
            "payload": str(announced.payload),
        }
        write_json(self.note(announced.transfer), values)

    def withdraw(self, transfer: Transfer) -> None:
        """The channel refuses it from now on. A part of an upload stays, for a round that is tried again."""
        self.note(transfer).unlink(missing_ok=True)
        if transfer.direction == "up":
            self.received(transfer).unlink(missing_ok=True)

    def find(self, transfer: Transfer) -> Announced | None:
        """The announcement of exactly this transfer. `transfer` may come from the wire: it is compared with what lies
        here and never made a path."""
        for note in sorted(self.folder.glob("*/*.json")):
            announced = read(note)
            if announced is not None and announced.transfer == transfer:
                return announced
        return None


def read(note: Path) -> Announced | None:
    """None where it was withdrawn meanwhile."""
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    transfer = Transfer.model_validate(values["transfer"])
    return Announced(transfer, manifest_from(values["manifest"]), Path(values["payload"]))
