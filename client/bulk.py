"""A site's end of the bulk channel: it dials out, proves itself with its key, and goes on at a byte after any fault.

Nothing is chosen here: what may be uploaded is for the door to say (`client/egress.py`).
"""

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from common.address import Address
from common.bulk.opening import CHUNK, DIGITS, METHODS, SERVICE, ChannelRefused, Opening, Transfer, options, to_sign
from common.bulk.pace import Pace
from common.keys import sign
from common.transfer.incoming import Incoming
from common.transfer.manifest import Manifest

PASSING = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
)
"""What a cut connection, a coordinator that starts again or one that is full ends a call with."""
TRIES = 40
"""Calls without a byte more than before, after which a transfer is given up: about a quarter of an hour."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True)
class Channel:
    """Where the coordinator's service is, and who this site is there."""

    coordinator: Address
    ca: Path
    key: ec.EllipticCurvePrivateKey
    pace: Pace

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca.read_bytes())


class Tries:
    """Counts calls in a row that brought nothing, and waits longer after each."""

    def __init__(self, limit: int) -> None:
        self.limit, self.best = limit, -1
        self.left, self.pause = limit, FIRST_PAUSE_S

    def stands_at(self, byte: int) -> None:
        """How much is at the other end now."""
        if byte > self.best:
            self.best, self.left, self.pause = byte, self.limit, FIRST_PAUSE_S

    def failed(self, error: grpc.RpcError) -> None:
        """Wait before the next call.

        Raises:
            ChannelRefused: another call would not help, or there were too many.
        """
        self.left -= 1
        if error.code() not in PASSING or self.left == 0:
            raise ChannelRefused(f"{error.code().name}: {error.details()}") from None
        time.sleep(self.pause)
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)


def upload(channel: Channel, transfer: Transfer, payload: Path, tries: int = TRIES) -> None:
    """Send a file until the coordinator has all of it.

    Raises:
        ChannelRefused: the coordinator does not take it, or cannot be reached.
    """
    repeated(lambda counted: upload_once(channel, transfer, payload, counted), tries)


def download(channel: Channel, transfer: Transfer, manifest: Manifest, place: Path, tries: int = TRIES) -> None:
    """Fetch a payload to `place`, which appears whole or not at all.

    Raises:
        ChannelRefused: the coordinator does not give it, or cannot be reached.
        BadPayload: it sent other bytes than the manifest's.
    """
    repeated(lambda counted: download_once(channel, transfer, manifest, place, counted), tries)


def repeated(attempt: Callable[[Tries], None], tries: int) -> None:
    counted = Tries(tries)
    while True:
        try:
            return attempt(counted)
        except grpc.RpcError as error:
            counted.failed(error)


@dataclass(frozen=True)
class Call:
    """One call of the service. `heard` hands the coordinator's replies to the thread that sends."""

    channel: Channel
    opening: Opening
    heard: "queue.SimpleQueue[bytes | None]"

    def begin(self, sending: Callable[[], Iterator[bytes]], connection: grpc.Channel) -> Iterator[bytes]:
        """Args: `sending`: what follows the signature."""

        def requests() -> Iterator[bytes]:
            yield self.opening.model_dump_json().encode()
            challenge = self.heard.get()
            if challenge is not None:
                yield sign(self.channel.key, to_sign(self.opening, challenge))
                yield from sending()

        return connection.stream_stream(f"/{SERVICE}/{METHODS[self.opening.transfer.direction]}")(requests())


def upload_once(channel: Channel, transfer: Transfer, payload: Path, tries: Tries) -> None:
    call = Call(channel, Opening(transfer=transfer), queue.SimpleQueue())

    def chunks() -> Iterator[bytes]:
        offset = call.heard.get()
        if offset is None or not DIGITS.fullmatch(offset):
            return
        tries.stands_at(int(offset))
        with payload.open("rb") as file:
            file.seek(int(offset))
            while data := file.read(CHUNK):
                channel.pace.wait(len(data))
                yield data

    with grpc.secure_channel(str(channel.coordinator), channel.credentials(), options()) as connection:
        try:
            for reply in call.begin(chunks, connection):
                call.heard.put(reply)
        finally:
            call.heard.put(None)


def download_once(channel: Channel, transfer: Transfer, manifest: Manifest, place: Path, tries: Tries) -> None:
    with (
        Incoming(place, manifest) as incoming,
        grpc.secure_channel(str(channel.coordinator), channel.credentials(), options()) as connection,
    ):
        tries.stands_at(incoming.held)
        call = Call(channel, Opening(transfer=transfer, offset=incoming.held), queue.SimpleQueue())
        try:
            replies = call.begin(lambda: iter(()), connection)
            call.heard.put(next(replies))
            for data in replies:
                channel.pace.wait(len(data))
                incoming.add(data)
        finally:
            call.heard.put(None)
        incoming.finish()
