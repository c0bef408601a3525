"""What a payload is, told before it is sent: its hash and size, and those of the shards that it is moved in.

A payload is one file of any content: an encoded update on its way up, a model or a model's difference on its way
down. Whoever has the manifest can ask for any part of it again, in any order, and knows what is whole.

Only the standard library is imported here: a process that hands out a shard is started for that message alone.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

HASH = re.compile(r"[0-9a-f]{64}")
PIECE = 1 << 20
"""Bytes that are in memory at a time where a file is hashed."""
LARGEST = 1 << 50
"""Bytes of a payload, at most: a size that no machine has is no size."""


class BadPayload(ValueError):
    """Bytes that are not those of a manifest, or a manifest that fits no bytes. The text holds no content."""


@dataclass(frozen=True)
class Shard:
    sha256: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Manifest:
    sha256: str
    """Of the whole payload; this is its name."""
    size: int
    shards: tuple[Shard, ...]
    """In order; together they are the payload."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each shard begins, in bytes, and where the last one ends."""
        return tuple(accumulate((shard.size for shard in self.shards), initial=0))

    def to_dict(self) -> dict[str, str | int | list[str] | list[int]]:
        """Values that JSON and a Flower `ConfigRecord` can hold."""
        return {
            "sha256": self.sha256,
            "size": self.size,
            "shard_sha256": [shard.sha256 for shard in self.shards],
            "shard_size": [shard.size for shard in self.shards],
        }


def is_hash(value: object) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def manifest_from(values: Mapping[str, object]) -> Manifest:
    """What `Manifest.to_dict` wrote; other keys are ignored.

    Raises:
        BadPayload: a hash or size that is none, or shards that do not add up to the payload.
    """
    whole, size = values.get("sha256"), values.get("size")
    hashes, sizes = values.get("shard_sha256"), values.get("shard_size")
    if not isinstance(hashes, list) or not isinstance(sizes, list) or len(hashes) != len(sizes):
        raise BadPayload("the manifest has no list of shards")
    if not all(map(is_hash, [whole, *hashes])) or not all(map(is_size, [size, *sizes])):
        raise BadPayload("a hash or a size in the manifest is none")
    if sum(sizes) != size:
        raise BadPayload("the manifest's shards do not add up to the payload")
    return Manifest(str(whole), sum(sizes), tuple(map(Shard, hashes, sizes)))


def pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a file, a few at a time; fewer where it ends before."""
    while size > 0 and (data := file.read(min(PIECE, size))):
        size -= len(data)
        yield data


def manifest_of(path: Path, shard_bytes: int) -> Manifest:
    """A file's manifest, read once, PIECE bytes at a time.

    Args:
        shard_bytes: size of all shards but the last, which has what is left.
    """
    whole, left = hashlib.sha256(), path.stat().st_size
    shards = []
    with path.open("rb") as file:
        while left:
            part, size = hashlib.sha256(), min(shard_bytes, left)
            for data in pieces(file, size):
                whole.update(data)
                part.update(data)
            shards.append(Shard(part.hexdigest(), size))
            left -= size
    return Manifest(whole.hexdigest(), sum(shard.size for shard in shards), tuple(shards))


def read_shard(path: Path, manifest: Manifest, number: int) -> bytes:
    """A shard's bytes, verified.

    Raises:
        BadPayload: there is no shard of this number, or the file is not the one of the manifest any more.
    """
    if not 0 <= number < len(manifest.shards):
        raise BadPayload(f"the payload has {len(manifest.shards)} shards")
    with path.open("rb") as file:
        file.seek(manifest.offsets[number])
        data = file.read(manifest.shards[number].size)
    check_shard(manifest, number, data)
    return data


def check_shard(manifest: Manifest, number: int, data: bytes) -> None:
    """Raises: BadPayload where `data` is not this shard."""
    if hashlib.sha256(data).hexdigest() != manifest.shards[number].sha256:
        raise BadPayload(f"the bytes of shard {number} are not those of the manifest")
