"""Updates that passed the door, in a run's folder, until the coordinator says that their round is folded.

    runs/RUN/outbox/
      SHA256.payload      the encoded update
      SHA256.json         its manifest and round; written by the door alone, once it has let the update out

A shard leaves only of a payload that has both. An update goes when a message of a later round, or the run's end, tells
that its round is folded; where neither comes, after `[client] keep_days`.

Nothing heavy is imported here: a process that hands out a shard is started for that message alone.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.disk import write
from client.policy import BAD_REQUEST, Refusal
from common.transfer.manifest import BadPayload, Manifest, is_hash, manifest_from, manifest_of, read_shard
from common.transfer.records import PAYLOAD_MISSING

DAY_S = 86400.0


@dataclass(frozen=True)
class Outbox:
    folder: Path

    def payload(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.payload"

    def put(self, fill: Callable[[Path], object], shard_bytes: int) -> Manifest:
        """A new payload, not approved yet, and the only one.

        Args:
            fill: writes the file.
            shard_bytes: size of its shards.
        """
        place = self.folder / "new"
        write(place, fill)
        manifest = manifest_of(place, shard_bytes)
        for payload in self.folder.glob("*.payload"):
            if payload.stem != manifest.sha256:
                self.drop(payload.stem)
        os.replace(place, self.payload(manifest.sha256))
        return manifest

    def approve(self, manifest: Manifest, number: int) -> None:
        """Args: `number`: the round that the update is of."""
        text = json.dumps({"round": number, "manifest": manifest.to_dict()})
        write(self.folder / f"{manifest.sha256}.json", lambda part: part.write_text(text))

    def approved(self, sha256: str) -> Manifest:
        """Raises: Refusal(PAYLOAD_MISSING) for what never passed the door, or is not here any more."""
        if not is_hash(sha256):
            raise Refusal(BAD_REQUEST)
        note = self.folder / f"{sha256}.json"
        if not note.exists() or not self.payload(sha256).exists():
            raise Refusal(PAYLOAD_MISSING)
        return manifest_from(json.loads(note.read_text())["manifest"])

    def shard(self, sha256: str, number: int) -> bytes:
        """An approved payload's shard, verified.

        Raises:
            Refusal: PAYLOAD_MISSING, also where the file is damaged, which is then deleted; BAD_REQUEST for a number
                that it does not have.
        """
        manifest = self.approved(sha256)
        if number >= len(manifest.shards):
            raise Refusal(BAD_REQUEST)
        try:
            return read_shard(self.payload(sha256), manifest, number)
        except BadPayload:
            self.drop(sha256)
            raise Refusal(PAYLOAD_MISSING) from None

    def whole(self, sha256: str) -> Path:
        """An approved payload's file, verified.

        Raises:
            Refusal: PAYLOAD_MISSING, also where the file is damaged, which is then deleted.
        """
        self.approved(sha256)
        with self.payload(sha256).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            self.drop(sha256)
            raise Refusal(PAYLOAD_MISSING)
        return self.payload(sha256)

    def acknowledged(self, number: int) -> None:
        """Rounds up to this one are folded."""
        for note in self.folder.glob("*.json"):
            if json.loads(note.read_text())["round"] <= number:
                self.drop(note.stem)

    def drop_older(self, days: float) -> None:
        for payload in self.folder.glob("*.payload"):
            if time.time() - payload.stat().st_mtime > days * DAY_S:
                self.drop(payload.stem)

    def drop(self, sha256: str) -> None:
        self.payload(sha256).unlink(missing_ok=True)
        (self.folder / f"{sha256}.json").unlink(missing_ok=True)
