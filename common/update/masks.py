"""Streams of masks: ChaCha20's key stream as numbers modulo 2^32, from any place on.

ChaCha20 (RFC 8439) as a pseudo-random generator: encrypting zeros under a key that is used for nothing else. A place is
reached by its block counter, so that a vector larger than memory can be masked piece by piece.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

BLOCK = 16
"""Numbers in one ChaCha20 block of 64 bytes; pieces begin at multiples of it."""
LONGEST = BLOCK << 32
"""Numbers before the block counter would come round again."""


@dataclass(frozen=True)
class Mask:
    """A stream that is added (or taken away, where `sign` is -1). `key` has 32 bytes."""

    key: bytes
    sign: int


def stream(key: bytes, begin: int, count: int) -> np.ndarray:
    """Numbers `begin` to `begin + count` of a key's stream: [count] uint32."""
    if begin % BLOCK or begin + count > LONGEST:
        raise ValueError(f"a stream cannot be read at {begin} for {count} numbers")
    nonce = struct.pack("<I", begin // BLOCK) + bytes(12)
    cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * count)), dtype="<u4")


def add_masks(values: np.ndarray, masks: Iterable[Mask], begin: int = 0) -> None:
    """Add the masks to [N] uint32 in place, modulo 2^32; `begin` is the place of the first in the whole vector."""
    for mask in masks:
        numbers = stream(mask.key, begin, len(values))
        if mask.sign > 0:
            np.add(values, numbers, out=values)
        else:
            np.subtract(values, numbers, out=values)
