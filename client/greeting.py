"""The pre-flight call to the coordinator's bulk channel (common/bulk/check.py): who this site is there, and how fast
the line is."""

import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from client.bulk import Channel
from common.bulk.check import METHOD, PROBE, Greeting, Welcome
from common.bulk.opening import CHUNK, SERVICE, options, to_sign
from common.errors import UserError
from common.keys import sign

CALL_S = 300.0
"""Slower than 0.06 MB/s is too slow for any model."""
REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED: (
        "the coordinator does not know this key under the name {site!r}, or has revoked it",
        "Send it site.pub and compare the fingerprints by telephone; it runs `wardround sites add`.",
    ),
    grpc.StatusCode.UNAVAILABLE: (
        "nobody answers there, or not with a certificate of this CA",
        "See docs/firewall.md, and ask the coordinator whether it offers the bulk channel on that port.",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        f"{2 * PROBE >> 20} MiB took longer than {CALL_S:.0f} s",
        "Ask IT what holds the line back.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "the coordinator runs a version without this check",
        "Ask it to install the version of this site.",
    ),
}


class NotKnown(UserError):
    """The coordinator does not know this key under this name."""


@dataclass(frozen=True)
class Line:
    """What the coordinator said, and million bytes a second to it and from it, where a probe was sent."""

    versions: dict[str, str]
    up: float
    down: float


class Probe:
    """One call: a thread of gRPC's sends what `requests` yields, while `go` hears."""

    def __init__(self, channel: Channel, greeting: Greeting) -> None:
        self.channel, self.greeting = channel, greeting
        self.heard: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def requests(self) -> Iterator[bytes]:
        yield self.greeting.model_dump_json().encode()
        challenge = self.heard.get()
        if challenge is None:
            return
        yield sign(self.channel.key, to_sign(self.greeting, challenge))
        if self.heard.get() is None:
            return
        data = os.urandom(CHUNK)
        for _ in range(self.greeting.probe // CHUNK):
            self.channel.pace.wait(CHUNK)
            yield data

    def go(self, replies: Iterator[bytes]) -> Line:
        """Raises: grpc.RpcError."""
        self.heard.put(next(replies))
        welcome = next(replies)
        began = time.monotonic()
        self.heard.put(welcome)
        next(replies)  # all of it is there
        turned = time.monotonic()
        for data in replies:
            self.channel.pace.wait(len(data))
        ended = time.monotonic()
        versions = Welcome.model_validate_json(welcome, strict=True).versions
        size = self.greeting.probe / 1e6
        return Line(versions, size / (turned - began), size / (ended - turned))


def greet(channel: Channel, greeting: Greeting) -> Line:
    """Call the coordinator.

    Raises:
        NotKnown: it does not know this site.
        UserError: it cannot be reached.
    """
    probe = Probe(channel, greeting)
    with grpc.secure_channel(str(channel.coordinator), channel.credentials(), options()) as connection:
        try:
            return probe.go(connection.stream_stream(f"/{SERVICE}/{METHOD}")(probe.requests(), timeout=CALL_S))
        except grpc.RpcError as error:
            other = (f"it ended with {error.code().name}", "Tell the coordinator.")
            said, remedy = REFUSALS.get(error.code(), other)
            kind = NotKnown if error.code() is grpc.StatusCode.UNAUTHENTICATED else UserError
            raise kind(f"{channel.coordinator}: {said.format(site=greeting.site)}.", remedy) from None
        finally:
            probe.heard.put(None)
