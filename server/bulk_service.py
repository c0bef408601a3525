"""The bulk channel's service: sites upload and download announced payloads over gRPC and TLS.

    python -m server.bulk_service COORDINATOR --host H --port P [--mb-per-s N] [--round-limit-s S]

`wardround serve` starts it as a process of its own. Who a site is, it proves with the key that the coordinator
registered; what may be moved lies in the spool (`server/bulk_spool.py`). Every refusal is one gRPC status with a fixed
sentence. On the same port the coordinator's health is told (`server/health.py`).
"""

import argparse
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc
from pydantic import ValidationError

from common.address import Address
from common.bulk import beat, check
from common.bulk.beat import Beat
from common.bulk.check import Greeting, Welcome
from common.bulk.opening import CHALLENGE_BYTES, CHUNK, METHODS, SERVICE, Opening, Transfer, options, to_sign
from common.bulk.pace import Pace
from common.command import run
from common.disk import disk_fault
from common.errors import UserError
from common.keys import read_public_key, signed_by
from common.processes import end_on_termination
from common.transfer.incoming import Incoming
from common.transfer.manifest import BadPayload
from common.versions import versions
from server.bulk_spool import Announced, Spool
from server.coordinator import Coordinator, site_keys
from server.health import Health
from server.heartbeats import keep
from server.run_folder import EventLog

OPENING_S = 20.0
"""A call that has not proved itself by then is ended: whoever reaches the port can begin one."""
AT_ONCE = 64
"""Calls that are answered at the same time; each holds a thread and a few chunks."""
Spoken = TypeVar("Spoken", Opening, Beat, Greeting)
"""What a site says first, with its name in it."""
Requests = Iterator[bytes]
Replies = Iterator[bytes]


class Refused(Exception):
    """Why a call ends."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


class BulkService:
    """Attributes:
    under_way: transfers that a call is at work on; a second call for one has to wait.
    paces: one of each site, for all that it moves.
    """

    def __init__(self, coordinator: Coordinator, bytes_per_s: float | None = None) -> None:
        self.coordinator = coordinator
        self.spool = Spool(coordinator.bulk)
        self.log = EventLog(coordinator.logs / "bulk.jsonl")
        self.lock = threading.Lock()
        self.under_way: set[Transfer] = set()
        self.paces: dict[str, Pace] = defaultdict(lambda: Pace(bytes_per_s))

    def upload(self, requests: Requests, context: grpc.ServicerContext) -> Replies:
        return self.answer("up", requests, context, self.receive)

    def download(self, requests: Requests, context: grpc.ServicerContext) -> Replies:
        return self.answer("down", requests, context, self.send)

    def answer(
        self,
        direction: str,
        requests: Requests,
        context: grpc.ServicerContext,
        move: Callable[[Announced, Opening, Requests], Replies],
    ) -> Replies:
        """One call from its opening to its end."""
        site = ""
        try:
            opening = yield from self.admit(requests, context, Opening)
            site = opening.transfer.site
            announced = self.spool.find(opening.transfer)
            if opening.transfer.direction != direction or announced is None:
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this payload is not announced to this site")
            with self.alone(opening.transfer):
                began = time.monotonic()
                yield from move(announced, opening, requests)
            self.log.write("bulk_moved", **opening.transfer.model_dump(), bytes=announced.manifest.size,
                           seconds=time.monotonic() - began)  # fmt: skip
        except Refused as refused:
            self.log.write("bulk_refused", site=site, direction=direction, fault=refused.sentence)
            context.abort(refused.code, refused.sentence)
        except OSError as error:
            fault = disk_fault(error)
            if fault is None:
                raise
            self.log.write("bulk_refused", site=site, direction=direction, fault=fault)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the coordinator's disk cannot be used now")

    def beat(self, requests: Requests, context: grpc.ServicerContext) -> Replies:
        """A site says how far its local training is."""
        try:
            keep(self.coordinator.progress, (yield from self.admit(requests, context, Beat)))
        except Refused as refused:
            self.log.write("beat_refused", fault=refused.sentence)
            context.abort(refused.code, refused.sentence)

    def check(self, requests: Requests, context: grpc.ServicerContext) -> Replies:
        """A site looks whether it could take part, and how fast its line is."""
        site = ""
        try:
            greeting = yield from self.admit(requests, context, Greeting)
            site = greeting.site
            yield Welcome(versions=versions()).model_dump_json().encode()
            yield from self.probe(greeting.probe, requests, self.paces[site])
            self.log.write("site_checked", site=site, versions=greeting.versions)
        except Refused as refused:
            self.log.write("check_refused", site=site, fault=refused.sentence)
            context.abort(refused.code, refused.sentence)

    @staticmethod
    def probe(size: int, requests: Requests, pace: Pace) -> Replies:
        """Take so many bytes, then send as many. Raises: Refused."""
        left = size
        while left > 0:
            data = next(requests, b"")
            if not data:
                raise Refused(grpc.StatusCode.ABORTED, "the call ended before the probe's last byte")
            pace.wait(len(data))
            left -= len(data)
        yield b""
        for _ in range(size // CHUNK):
            pace.wait(CHUNK)
            # A line that compresses would carry zeros faster than it carries a model.
            yield os.urandom(CHUNK)

    def admit(
        self, requests: Requests, context: grpc.ServicerContext, kind: type[Spoken]
    ) -> Generator[bytes, None, Spoken]:
        """Read the opening, send a challenge, check the signature over both; returns the opening.

        Raises:
            Refused: UNAUTHENTICATED for an unknown site as for a wrong signature, so that names cannot be tried.
        """
        impatience = threading.Timer(OPENING_S, context.cancel)
        impatience.daemon = True
        impatience.start()
        try:
            opening = kind.model_validate_json(next(requests), strict=True)
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            yield challenge
            signature = next(requests)
        except (ValidationError, StopIteration):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "this is no opening of a transfer") from None
        finally:
            impatience.cancel()
        key = site_keys(self.coordinator).get(opening.site)
        if key is None or not signed_by(read_public_key(key), signature, to_sign(opening, challenge)):
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the site is not known, or the signature is not its own")
        return opening

    @contextmanager
    def alone(self, transfer: Transfer) -> Iterator[None]:
        with self.lock:
            if transfer in self.under_way:
                raise Refused(grpc.StatusCode.ABORTED, "this transfer is under way in another call")
            self.under_way.add(transfer)
        try:
            yield
        finally:
            with self.lock:
                self.under_way.remove(transfer)

    def receive(self, announced: Announced, opening: Opening, requests: Requests) -> Replies:
        """Take an upload from the byte on where the last call left it."""
        manifest, pace = announced.manifest, self.paces[announced.transfer.site]
        if announced.payload.exists():
            yield str(manifest.size).encode()
            return
        try:
            with Incoming(announced.payload, manifest) as incoming:
                yield str(incoming.held).encode()
                for data in requests:
                    pace.wait(len(data))
                    incoming.add(data)
                if not incoming.complete:
                    raise Refused(grpc.StatusCode.ABORTED, "the call ended before the payload's last byte")
                if self.spool.find(announced.transfer) is None:
                    raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this payload is not announced any more")
                incoming.finish()
        except BadPayload as bad:
            raise Refused(grpc.StatusCode.DATA_LOSS, str(bad)) from None

    def send(self, announced: Announced, opening: Opening, requests: Requests) -> Replies:
        """Send a download from the byte on that the site names."""
        pace, left = self.paces[announced.transfer.site], announced.manifest.size - opening.offset
        if left < 0:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, "the payload is shorter than that")
        with announced.payload.open("rb") as file:
            file.seek(opening.offset)
            while left and (data := file.read(min(CHUNK, left))):
                pace.wait(len(data))
                left -= len(data)
                yield data


def start(
    coordinator: Coordinator, address: Address, bytes_per_s: float | None = None, round_limit_s: float | None = None
) -> grpc.Server:
    """A service that listens.

    Args:
        round_limit_s: how old a run's last finished round may be before health says so.

    Raises:
        UserError: the port is taken.
    """
    service, files = BulkService(coordinator, bytes_per_s), coordinator.certificates
    methods = {METHODS["up"]: service.upload, METHODS["down"]: service.download}
    methods |= {beat.METHOD: service.beat, check.METHOD: service.check}
    handlers = {name: grpc.stream_stream_rpc_method_handler(method) for name, method in methods.items()}
    # A port that another process listens on is to be refused, not shared.
    given = [*options(), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(AT_ONCE), options=given, maximum_concurrent_rpcs=AT_ONCE)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(Health(coordinator, round_limit_s), server)
    credentials = grpc.ssl_server_credentials([(files.server_key.read_bytes(), files.server.read_bytes())])
    try:
        server.add_secure_port(str(address), credentials)
    except RuntimeError:
        raise UserError(f"{address}: the bulk channel cannot listen there.", "Choose another --bulk-port.") from None
    server.start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coordinator", type=Path)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mb-per-s", type=float, help="most that a site may move; no limit unless given")
    parser.add_argument("--round-limit-s", type=float, help="see server/health.py")
    given = parser.parse_args()
    end_on_termination()
    limit = None if given.mb_per_s is None else given.mb_per_s * 1e6
    coordinator, address = Coordinator(given.coordinator.resolve()), Address(given.host, given.port)
    server = start(coordinator, address, limit, given.round_limit_s)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        server.stop(grace=None).wait()


if __name__ == "__main__":
    run(main)
