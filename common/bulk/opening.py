"""How a bulk transfer begins: what the two ends say to each other before bytes flow.

One call a transfer, `Upload` or `Download` of the coordinator's gRPC service, streaming both ways. The messages are
plain bytes, so that there is no generated code:

| | site | coordinator |
|---|---|---|
| 1 | an `Opening` as JSON | |
| 2 | | a challenge: 32 random bytes, for this call alone |
| 3 | the site's signature over both | |
| 4 | | an upload: how many bytes it has, as decimal digits |
| 5 | an upload: the bytes from there on, in chunks | a download: the bytes from the opening's `offset` on |

A challenge lives in its call, so what was signed for one call says nothing in another. That the coordinator is who it
says is TLS's part.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from common.strict import Strict

SERVICE = "wardround.Bulk"
METHODS = {"up": "Upload", "down": "Download"}
CHUNK = 512 * 1024
"""Bytes of a message: what stands in memory of a transfer is a few of them."""
WINDOW = 4 * 2**20
"""Bytes on their way of one call, at most: at a round trip of 50 ms that is 80 MB a second."""
CHALLENGE_BYTES = 32
PURPOSE = b"wardround bulk channel 1\0"
"""Begins all that is signed here, so that the key's signatures elsewhere cannot be used."""
DIGITS = re.compile(rb"^[0-9]{1,18}$")

Direction = Literal["up", "down"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Transfer(Strict):
    """Which payload goes which way, for whom and for what."""

    direction: Direction
    site: str
    study: Digest
    run: str
    round: int = Field(ge=0)
    sha256: Digest
    """Of the whole payload."""


class Opening(Strict):
    transfer: Transfer
    offset: int = Field(default=0, ge=0)
    """A download: how many bytes the site has already."""

    @property
    def site(self) -> str:
        return self.transfer.site


@dataclass(frozen=True)
class ChannelRefused(Exception):
    """The coordinator said no, in its own fixed sentence. Trying again would not help."""

    sentence: str


def to_sign(opening: Strict, challenge: bytes) -> bytes:
    """The challenge has a fixed length, so no other pair of opening and challenge gives the same bytes.

    Args:
        opening: what the site says first: an `Opening`, or a `Beat` (common/bulk/beat.py).
    """
    return PURPOSE + challenge + opening.model_dump_json().encode()


def options() -> list[tuple[str, int]]:
    """Of both ends: small windows, so that a slow reader holds its writer back, and a dead connection is noticed."""
    return [
        ("grpc.max_receive_message_length", 2 * CHUNK),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Windows of a fixed size: one that is measured grows to hundreds of megabytes where the machine is slow.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW),
    ]
