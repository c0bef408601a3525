"""The allow-list: every field that may stand in an answer of this site, with its type and its largest size.

`replies.py` says what the site's work may hand to the door; this file says what may be in the message that the door
makes of it, and checks the finished message. docs/privacy.md has the same table (tests/client/test_privacy_page.py).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Array, MetricRecord, RecordDict

from client.policy import NOT_ALLOWED, Refusal
from common.transfer.manifest import is_hash, is_size
from common.transfer.records import SHARD
from common.update.secagg import NONCE, SECRET

MOST = 10**9
"""No count of patients, questions, rounds or shards is above it."""
LARGEST_FIGURE = 10**7
"""Of rewards and seconds."""
LONGEST_JSON = 16 * 10**6
LARGEST_SHARD = 256 * 10**6
"""Bytes; `transfer.shard_mb` and `transfer.inline_mb` go no further."""
LONGEST_SIGNATURE = 104
"""Bytes of an ECDSA signature by a P-384 key, in DER."""
TAG = 16
"""Bytes that AES-GCM adds."""
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class Kind:
    """A type of value: in words, as docs/privacy.md has it, and as a test of a value."""

    words: str
    fits: Callable[[object], bool]


def is_count(value: object) -> bool:
    # Not isinstance: True is an int, and so may be what prints as something else.
    return type(value) is int and 0 <= value <= MOST


def is_number(value: object, decimals: int) -> bool:
    """Finite, not negative (nor minus zero), and no digit beyond these decimals."""
    if type(value) is not float or not math.isfinite(value) or math.copysign(1.0, value) < 0:
        return False
    return value <= LARGEST_FIGURE and round(value, decimals) == value


def is_list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: type(value) is list and all(map(fits, value))


def is_json(value: object) -> bool:
    return type(value) is str and value.isprintable() and len(value) <= LONGEST_JSON


def is_bytes(value: object) -> bool:
    if not isinstance(value, Array) or (value.dtype, value.stype) != ("uint8", "raw"):
        return False
    return tuple(value.shape) == (len(value.data),) and len(value.data) <= LARGEST_SHARD


def is_plain(value: object, size: int) -> bool:
    return type(value) is bytes and len(value) == size


def is_counts(value: object) -> bool:
    if not isinstance(value, Array) or value.dtype != "int64" or len(value.shape) != 1:
        return False
    numbers = value.numpy()
    # An array's bytes have a header of their own: only the one that numpy writes for these numbers will do.
    return bool(Array(numbers).data == value.data and ((numbers >= 0) & (numbers <= MOST)).all())


COUNT = Kind("whole number, at most 10^9", is_count)
SHARE = Kind("number with 4 decimals", lambda value: is_number(value, 4))
SECONDS = Kind("seconds with 2 decimals", lambda value: is_number(value, 2))
NAME = Kind("63 of a-z, 0-9, -", lambda value: type(value) is str and SITE_NAME.fullmatch(value) is not None)
HASH = Kind("64 hexadecimal digits", lambda value: type(value) is str and is_hash(value))
SIZE = Kind("whole number, at most 2^50", lambda value: type(value) is int and is_size(value))
HASHES = Kind("64 hexadecimal digits each", is_list_of(HASH.fits))
SIZES = Kind("whole numbers, at most 2^50", is_list_of(SIZE.fits))
JSON = Kind("JSON, at most 16 MB", is_json)
BYTES = Kind("bytes, at most 256 MB", is_bytes)
NAMES = Kind("63 of a-z, 0-9, - each", is_list_of(NAME.fits))
SIGNATURE = Kind("at most 104 bytes", lambda value: type(value) is bytes and len(value) <= LONGEST_SIGNATURE)
KEYS = Kind("at most 200 bytes", lambda value: type(value) is bytes and len(value) <= 3 * SECRET + LONGEST_SIGNATURE)
SEALED = Kind("92 bytes each", is_list_of(lambda value: is_plain(value, NONCE + 2 * SECRET + TAG)))
SHARES = Kind("32 bytes each", is_list_of(lambda value: is_plain(value, SECRET)))
COUNTS = Kind("whole numbers, 8 bytes each", is_counts)

METRICS = {
    "patients": COUNT,
    "questions": COUNT,
    "reward": SHARE,
    "informative": SHARE,
    "generating_s": SECONDS,
    "learning_s": SECONDS,
}
NUMBER = {"manifest": {"round": COUNT}}
MANIFEST = {
    "manifest": {"round": COUNT, "sha256": HASH, "size": SIZE, "shard_sha256": HASHES, "shard_size": SIZES}
}
SHARD_ALONE = {SHARD: {SHARD: BYTES}}
ALLOWED: Mapping[str, Mapping[str, Mapping[str, Kind]]] = {
    "Described": {"site": {"name": NAME}},
    "Configured": {"counts": {"patients": COUNT, "questions": COUNT}},
    "Counted": {"counts": {"counts": COUNTS}, "cells": {"cells": JSON, "features": JSON}},
    "Trained": {**MANIFEST, "metrics": METRICS, **SHARD_ALONE},
    "Learned": {**NUMBER, "metrics": METRICS},
    "Keyed": {**NUMBER, "sum": {"advertised": KEYS}},
    "Dealt": {**NUMBER, "sealed": {"sites": NAMES, "values": SEALED}},
    "Masked": {**MANIFEST, **SHARD_ALONE},
    "Agreed": {**NUMBER, "sum": {"signature": SIGNATURE}},
    "Opened": {
        **NUMBER,
        "seeds": {"sites": NAMES, "values": SHARES},
        "mask_keys": {"sites": NAMES, "values": SHARES},
    },
    "Evaluated": {
        "manifest": {"round": COUNT},
        "counts": {"patients": COUNT, "questions": COUNT, "right": COUNT, "boxed": COUNT, "seconds": SECONDS},
    },
    "Handed": SHARD_ALONE,
    "Uploaded": {"manifest": {"sha256": HASH}},
    "Held": {"held": {"shards": COUNT}},
    "Acknowledged": NUMBER,
}
"""Kind of reply -> record -> field -> type. An answer has all of these and nothing else, but for two cases: an update
that is not small leaves without the shard of `Trained` or `Masked`, and with patient-level privacy no figure leaves."""


def check_allowed(kind: str, content: RecordDict, withheld: bool) -> None:
    """Refuse an answer with another record, field, type or size than the allow-list's.

    Args:
        withheld: no figure leaves, as the study has patient-level privacy.

    Raises:
        Refusal: NOT_ALLOWED; its rule names the allow-list's field, and never what was found.
    """
    allowed = ALLOWED[kind]
    inline = kind not in ("Trained", "Masked") or SHARD in content
    if set(content) != {name for name in allowed if name != SHARD or inline}:
        raise Refusal(NOT_ALLOWED, f"{kind} has other records than the allow-list's")
    for name, record in content.items():
        fields = {} if withheld and isinstance(record, MetricRecord) else allowed[name]
        if set(record) != set(fields):
            raise Refusal(NOT_ALLOWED, f"{kind}.{name} has other fields than the allow-list's")
        for field, value in record.items():
            if not fields[field].fits(value):
                raise Refusal(NOT_ALLOWED, f"{kind}.{name}.{field} is not: {fields[field].words}")
