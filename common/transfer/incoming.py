"""A payload on its way in: bytes are appended in order, and the file has its name only when all of them fit.

What has come lies in a file beside the place, named after the payload's hash. A process that is killed loses nothing
of it: the next one reads it through once and goes on at the byte where it ends, or at the start of the first shard
that is not whole on the disk.

Only the standard library is imported here, as in `manifest.py`.
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from common.transfer.manifest import BadPayload, Manifest, pieces


class Incoming:
    """Use as a context manager; one process at a time.

    Attributes:
        held: bytes that are here; the next ones to add are those from this place on.
        shards: how many shards are whole and verified.
    """

    def __init__(self, place: Path, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self.part = place.with_name(f".{place.name}.{manifest.sha256}.part")
        place.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.part.open("r+b" if self.part.exists() else "w+b")
        self.offsets = manifest.offsets
        self.start_over()
        try:
            for data in pieces(self.file, os.fstat(self.file.fileno()).st_size):
                self.take(data)
        except BadPayload:
            # A machine that lost power may have a whole length without its bytes.
            self.reread()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def start_over(self) -> None:
        self.file.seek(0)
        self.held, self.shards = 0, 0
        self.whole, self.shard = hashlib.sha256(), hashlib.sha256()

    def reread(self) -> None:
        """Count the shards that are whole, and nothing else."""
        good = self.offsets[self.shards]
        self.start_over()
        for data in pieces(self.file, good):
            self.take(data)

    def cut(self) -> None:
        """What lies behind `held` is nothing."""
        self.file.truncate(self.held)
        self.file.seek(self.held)

    def take(self, data: bytes) -> None:
        """Hash what follows `held`.

        Raises:
            BadPayload: a shard is not that of the manifest, or there are more bytes than it says.
        """
        view = memoryview(data)
        while view:
            if self.shards == len(self.manifest.shards):
                raise BadPayload("there are more bytes than the manifest says")
            now = view[: self.offsets[self.shards + 1] - self.held]
            self.whole.update(now)
            self.shard.update(now)
            self.held += len(now)
            view = view[len(now) :]
            if self.held == self.offsets[self.shards + 1]:
                if self.shard.hexdigest() != self.manifest.shards[self.shards].sha256:
                    raise BadPayload(f"the bytes of shard {self.shards} are not those of the manifest")
                self.shards += 1
                self.shard = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Append what follows `held`.

        Raises:
            BadPayload: the bytes are not those of the manifest. The file is then as long as its whole shards.
        """
        self.file.write(data)
        try:
            self.take(data)
        except BadPayload:
            self.reread()
            self.cut()
            raise

    def add_shard(self, data: bytes) -> None:
        """Append the shard that is next, of which some bytes may be here.

        Raises:
            BadPayload: it is not that shard.
        """
        begin, end = self.offsets[self.shards : self.shards + 2]
        if len(data) != end - begin:
            raise BadPayload(f"shard {self.shards} has {len(data)} bytes instead of {end - begin}")
        self.add(data[self.held - begin :])

    @property
    def complete(self) -> bool:
        return self.held == self.manifest.size

    def finish(self) -> Path:
        """Give the file its name.

        Raises:
            BadPayload: bytes are missing, or the whole does not have its hash; then nothing of it is kept.
        """
        if not self.complete:
            raise BadPayload(f"{self.manifest.size - self.held} of {self.manifest.size} bytes are missing")
        if self.whole.hexdigest() != self.manifest.sha256:
            self.part.unlink()
            raise BadPayload("the payload does not have its manifest's hash")
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.part, self.place)
        return self.place
