"""A payload on its way in: bytes are appended in order, and the file has its name only when all of them fit.

What has come lies in a file beside the place, named after the payload's hash. A process that is killed loses nothing
of it: the next one reads it through and goes on at the byte where it ends, or at the start of the first shard that is
not whole on the disk. Bytes that come are hashed once, into the whole's hash; shards are looked at where that does not
fit in the end.

A process that takes in one shard and ends does not read through what came before: `append_shard`.

Only the standard library is imported here, as in `manifest.py`.
"""

import hashlib
import os
from bisect import bisect_right
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

from common.transfer.manifest import BadPayload, Manifest, check_shard, pieces


def part_of(place: Path, manifest: Manifest) -> Path:
    """Where a payload's bytes lie until it is whole."""
    return place.with_name(f".{place.name}.{manifest.sha256}.part")


AHEAD = 8
"""Pieces that are written and not hashed yet, at most: they stand in memory."""
FLUSHED = 2**25
"""Bytes after which the disk is told to write: while more comes in, and not all of it in the end."""


class Incoming:
    """Use as a context manager; one process at a time.

    Attributes:
        held: bytes that are here; the next ones to add are those from this place on.
    """

    def __init__(self, place: Path, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self.part = part_of(place, manifest)
        # Hashing takes as long as the way over the network where the processor has no instruction for it.
        self.hashing = ThreadPoolExecutor(1)
        self.unhashed: deque[Future[None]] = deque()
        place.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.part.open("r+b" if self.part.exists() else "w+b")
        # A machine that lost power may have a whole length without its bytes.
        self.go_to(self.sound())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.hashing.shutdown()
        self.file.close()

    def sound(self) -> int:
        """So many bytes lie on the disk of which all whole shards are those of the manifest."""
        size, begin = os.fstat(self.file.fileno()).st_size, 0
        self.file.seek(0)
        for shard in self.manifest.shards:
            found = hashlib.sha256()
            for data in pieces(self.file, min(shard.size, size - begin)):
                found.update(data)
            if size < begin + shard.size:
                return size
            if found.hexdigest() != shard.sha256:
                return begin
            begin += shard.size
        return begin

    def go_to(self, byte: int) -> None:
        """Keep the bytes before this one."""
        self.wait_for_hash(0)
        self.file.seek(0)
        self.whole, self.held = hashlib.sha256(), byte
        for data in pieces(self.file, byte):
            self.whole.update(data)
        self.file.truncate(byte)
        self.file.seek(byte)

    @property
    def shards(self) -> int:
        """How many shards are here from their first to their last byte."""
        return bisect_right(self.manifest.offsets, self.held) - 1

    def add(self, data: bytes) -> None:
        """Append what follows `held`.

        Raises:
            BadPayload: there are more bytes than the manifest says; none of these is kept.
        """
        if self.held + len(data) > self.manifest.size:
            raise BadPayload("there are more bytes than the manifest says")
        self.file.write(data)
        due = self.held // FLUSHED != (self.held + len(data)) // FLUSHED
        self.unhashed.append(self.hashing.submit(self.follow, data, due))
        self.held += len(data)
        self.wait_for_hash(AHEAD)

    def follow(self, data: bytes, flush: bool) -> None:
        """Behind what comes in, in a thread of its own: hash it, and now and then put it on the disk."""
        self.whole.update(data)
        if flush:
            os.fdatasync(self.file.fileno())

    def wait_for_hash(self, left: int) -> None:
        """Until at most so many pieces are not hashed yet."""
        while len(self.unhashed) > left:
            self.unhashed.popleft().result()

    def add_shard(self, data: bytes) -> None:
        """Append the shard that is next, of which some bytes may be here.

        Raises:
            BadPayload: it is not that shard.
        """
        begin = self.manifest.offsets[self.shards]
        check_shard(self.manifest, self.shards, data)
        self.add(data[self.held - begin :])

    @property
    def complete(self) -> bool:
        return self.held == self.manifest.size

    def finish(self) -> Path:
        """Give the file its name.

        Raises:
            BadPayload: bytes are missing, or the whole does not have its hash; then the file ends before the first
                shard that is another than the manifest's, or, where none is, nothing of it is kept.
        """
        if not self.complete:
            raise BadPayload(f"{self.manifest.size - self.held} of {self.manifest.size} bytes are missing")
        self.file.flush()
        self.wait_for_hash(0)
        if self.whole.hexdigest() != self.manifest.sha256:
            self.refuse()
        os.fsync(self.file.fileno())
        os.replace(self.part, self.place)
        return self.place

    def refuse(self) -> NoReturn:
        """Raises: BadPayload."""
        good = self.sound()
        if good == self.manifest.size:
            self.part.unlink()
            raise BadPayload("the payload does not have its manifest's hash")
        self.go_to(good)
        raise BadPayload(f"the bytes of shard {self.shards} are not those of the manifest")


def append_shard(place: Path, manifest: Manifest, number: int | None, data: bytes) -> int:
    """Append a shard where it is the next one; returns how many are here, all of them once the file has its name.

    Each shard is on the disk before the next one is taken, so that only the last can have been cut short: no other is
    read again until the payload is complete, when all of it is.

    Args:
        number: of the shard; None where there is none, and what is here is only counted.

    Raises:
        BadPayload: it is not that shard; or the whole does not have its hash, and nothing of it is kept.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(place, manifest)
    with part.open("r+b" if part.exists() else "w+b") as file:
        here = shards_in(file, manifest)
        if number == here < len(manifest.shards):
            check_shard(manifest, here, data)
            file.truncate(manifest.offsets[here])
            file.seek(manifest.offsets[here])
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            here += 1
    if here == len(manifest.shards):
        with Incoming(place, manifest) as incoming:
            if incoming.complete:
                incoming.finish()
            here = incoming.shards
    return here


def shards_in(file: BinaryIO, manifest: Manifest) -> int:
    """How many whole shards lie in a file of `append_shard`; the last of them is read, and not counted if damaged."""
    here = bisect_right(manifest.offsets, os.fstat(file.fileno()).st_size) - 1
    if here == 0:
        return 0
    found, last = hashlib.sha256(), manifest.shards[here - 1]
    file.seek(manifest.offsets[here - 1])
    for data in pieces(file, last.size):
        found.update(data)
    return here if found.hexdigest() == last.sha256 else here - 1
