"""Random numbers that belong to a question, not to the run that asks for them.

Every draw is a pure function of (seed, patient, feature, what it is for), computed for all rows at once by a
counter-based generator. So a question does not change with the other patients in the list, the order, the
process or the machine. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of 63 bits for one purpose, so that no two uses of a study's seed share their draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}".encode()).digest()[:8], "big") >> 1


def hash_keys(seed: int, purpose: str, names: Iterable[str]) -> Keys:
    """One 64-bit key per name, shape (n,)."""
    prefix = hashlib.blake2b(f"{seed}|{purpose}|".encode(), digest_size=8)
    keys = []
    for name in names:
        digest = prefix.copy()
        digest.update(name.encode())
        keys.append(int.from_bytes(digest.digest(), "big"))
    return np.array(keys, dtype=np.uint64)


def mix(keys: Keys) -> Keys:
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def combine(keys: Keys, salt: Keys) -> Keys:
    """Keys of pairs, by broadcasting: rows' keys with a feature's key, for example."""
    return mix(mix(keys + GOLDEN) ^ salt)


def uniform(keys: Keys, purpose: str, columns: int) -> NDArray[np.float64]:
    """Uniform draws in the open interval (0, 1), shape (n, columns)."""
    salt = hash_keys(0, "uniform", [purpose])
    counters = salt + np.arange(1, columns + 1, dtype=np.uint64) * GOLDEN
    bits = mix(mix(keys[:, None] + GOLDEN) + counters[None, :])
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel(keys: Keys, purpose: str, columns: int) -> NDArray[np.float64]:
    """Standard Gumbel draws, shape (n, columns): the k largest of log weight + Gumbel are a draw of k
    without replacement by weight."""
    return -np.log(-np.log(uniform(keys, purpose, columns)))


def choose(patients: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` patients with the lowest hashes, sorted: one more patient displaces one at most."""
    ranked = sorted(zip(hash_keys(seed, "choose", patients).tolist(), patients, strict=True))
    return sorted(patient for _, patient in ranked[:count])


def shuffle(questions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Order by a hash of (seed, question), which no order before it can influence."""
    return questions[np.argsort(hash_keys(seed, "shuffle", questions["question_id"]), kind="stable")]
