"""Random numbers that nobody outside the site can guess: which patients a step draws, and the noise on its gradient.

Both must stay unknown to whoever reads the update, so they come neither from the study's seed, which the coordinator
knows, nor from torch's generators, whose state can be told from their output. They are read from ChaCha20 under a key
derived from the site's own secret and from everything that the step depends on: the same step from the same model
draws the same noise, so that a round which is computed again releases nothing new; another model draws other noise.

A normal number is half the sum of four, each by Box and Muller from 53-bit uniforms: with four, the gaps of floating
point numbers no longer tell the value beneath (Holohan and Braghin 2021, arXiv 2107.10138; so does Opacus in its
secure mode). None lies beyond 17.2 standard deviations.
"""

import json
import os
import secrets
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.update.masks import stream

KEY_NAME = "noise.key"
SECRET = 32


def site_secret(folder: Path) -> bytes:
    """The site's secret, made at the first call; it never leaves the folder, and only its owner can read it."""
    write_secret(folder, secrets.token_bytes(SECRET))
    return (folder / KEY_NAME).read_bytes()


def write_secret(folder: Path, secret: bytes) -> None:
    """Whole or not at all, mode 0600; one that is there already stays."""
    path = folder / KEY_NAME
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(part, path)
    except FileExistsError:
        pass  # another process was first: its secret is the site's
    part.unlink()


def derived_key(secret: bytes, *purpose: str | int) -> bytes:
    """A key of 32 bytes for one purpose."""
    info = json.dumps(purpose).encode()
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(secret)


def uniforms(key: bytes, count: int) -> np.ndarray:
    """[count] float64 in (0, 1), multiples of 2^-53 moved up by half of one."""
    words = stream(key, 0, 2 * count).view("<u8")
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(key: bytes, count: int) -> np.ndarray:
    """[count] float64, standard normal."""
    radius, angle = uniforms(key, 8 * count).reshape(2, 4, count)
    return (np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)).sum(axis=0) / 2.0
