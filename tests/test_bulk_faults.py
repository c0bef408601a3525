"""The bulk channel, its ends processes: each is killed, the connection is cut, and the file comes out the same."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks._relay import Fault, Relay
from common.address import Address, answers, free_port
from common.bulk.opening import CHUNK, WINDOW, Transfer
from common.keys import make_site_key
from common.processes import Process
from common.transfer.manifest import Manifest, manifest_of
from server.bulk_spool import Spool
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SITE = "north"
SIZE = 12_000_000
BYTES_PER_S = 4_000_000
"""A transfer takes three seconds, so that there is time to kill somebody."""
EARLY, LATE = 2_000_000, 8_000_000
"""So many bytes have arrived when something happens."""
ON_ITS_WAY = WINDOW + CHUNK
"""Bytes that a sender has handed over and that have not arrived, at most: less than `LATE`, so that a transfer that
goes on is told from one that begins anew."""
SITE_PROCESS = """
import sys
from pathlib import Path
from client.bulk import Channel, download, upload
from common.address import parse_address
from common.bulk.opening import ChannelRefused, Transfer
from common.bulk.pace import Pace
from common.keys import read_private_key
from common.transfer.manifest import manifest_of

class Counted(Pace):
    moved = 0
    def wait(self, count):
        self.moved += count
        super().wait(count)

address, ca, key, transfer, payload, place, rate = sys.argv[1:]
channel = Channel(parse_address(address), Path(ca), read_private_key(Path(key)), Counted(float(rate)))
transfer = Transfer.model_validate_json(transfer)
try:
    if transfer.direction == "up":
        upload(channel, transfer, Path(payload))
    else:
        download(channel, transfer, manifest_of(Path(payload), 2**22), Path(place))
except ChannelRefused as refused:
    sys.exit(refused.sentence)
print("moved", channel.pace.moved)
"""


class Ends:
    """A coordinator's service and a site, each a process, on one payload that is expected and offered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.coordinator = Coordinator(folder / "coordinator")
        make_certificates(self.coordinator.folder / "certs", ["localhost"])
        _, public = make_site_key(folder / "site")
        add_site(self.coordinator, SITE, public)
        self.payload = folder / "payload"
        self.payload.write_bytes(os.urandom(SIZE))
        self.manifest: Manifest = manifest_of(self.payload, 2**22)
        self.spool = Spool(self.coordinator.bulk)
        self.arrived = {"up": self.spool.expect(self.transfer("up"), self.manifest), "down": folder / "fetched"}
        self.spool.offer(self.transfer("down"), self.manifest, self.payload)
        self.running: list[Process] = []
        self.service = self.serve()

    def transfer(self, direction: str) -> Transfer:
        values = {"direction": direction, "site": SITE, "study": "5" * 64, "run": "a-run", "round": 1}
        return Transfer.model_validate({**values, "sha256": self.manifest.sha256})

    def start(self, name: str, line: list[str]) -> Process:
        process = Process(line, self.folder / f"{name}.log", dict(os.environ), Path.cwd())
        self.running.append(process)
        return process

    def serve(self) -> Process:
        given = [str(self.coordinator.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        service = self.start("service", [sys.executable, "-m", "server.bulk_service", *given])
        end = time.monotonic() + 60
        while not answers(Address("localhost", self.port), self.coordinator.certificates.ca):
            assert service.running and time.monotonic() < end, (self.folder / "service.log").read_text()
            time.sleep(0.1)
        return service

    def site(self, direction: str, port: int | None = None, bytes_per_s: int = BYTES_PER_S) -> Process:
        address, ca = f"localhost:{port or self.port}", str(self.coordinator.certificates.ca)
        key, transfer = str(self.folder / "site" / "site.key"), self.transfer(direction).model_dump_json()
        given = [address, ca, key, transfer, str(self.payload), str(self.folder / "fetched"), str(bytes_per_s)]
        return self.start(f"site-{len(self.running)}", [sys.executable, "-c", SITE_PROCESS, *given])

    def here(self, direction: str) -> int:
        """Bytes that have arrived of a transfer under way."""
        place = self.arrived[direction]
        part = place.with_name(f".{place.name}.{self.manifest.sha256}.part")
        return part.stat().st_size if part.exists() else 0

    def wait_for(self, count: int, direction: str) -> int:
        """Wait until so many bytes have arrived; returns how many they are by then."""
        end = time.monotonic() + 60
        while (here := self.here(direction)) < count:
            assert time.monotonic() < end, [process.log.read_text() for process in self.running]
            time.sleep(0.02)
        return here

    def finish(self, site: Process, direction: str) -> int:
        """Wait for a site's end; returns the bytes that it moved itself."""
        assert site.wait(120) == 0, site.log.read_text()
        assert self.arrived[direction].read_bytes() == self.payload.read_bytes()
        return int(site.log.read_text().split()[-1])


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    for process in made.running:
        process.stop()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_site_that_is_killed_goes_on_where_it_was(ends: Ends, direction: str) -> None:
    site = ends.site(direction)
    here = ends.wait_for(EARLY, direction)
    site.child.kill()
    assert site.wait(10) is not None and not ends.arrived[direction].exists()
    assert ends.finish(ends.site(direction), direction) <= SIZE - here


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_service_that_is_killed_and_started_again_goes_on_where_it_was(ends: Ends, direction: str) -> None:
    site = ends.site(direction)
    ends.wait_for(LATE, direction)
    ends.service.child.kill()
    assert ends.service.wait(10) is not None
    ends.serve()
    # What was on its way when the service died is sent once more, not what had arrived.
    assert ends.finish(site, direction) <= SIZE + ON_ITS_WAY


@pytest.mark.parametrize(("direction", "fault"), [("up", Fault.CUT), ("down", Fault.CUT), ("up", Fault.DAMAGED)])
def test_a_connection_that_is_cut_or_damaged_is_made_again(ends: Ends, direction: str, fault: Fault) -> None:
    relay = Relay(ends.port)
    relay.hit(fault, direction == "up", after=LATE)
    assert ends.finish(ends.site(direction, relay.port), direction) <= SIZE + ON_ITS_WAY
    assert relay.hits == 1


def test_a_transfer_that_two_processes_of_a_site_begin_is_made_once(ends: Ends) -> None:
    ends.spool.expect(ends.transfer("up"), ends.manifest)
    both = [ends.site("up"), ends.site("up")]
    moved = [ends.finish(site, "up") for site in both]
    assert sum(moved) == SIZE, "one of the two sent everything, the other found it there"


def after_the_round(ends: Ends) -> None:
    ends.spool.withdraw(ends.transfer("up"))


def with_another_key(ends: Ends) -> None:
    (ends.folder / "site" / "site.key").unlink()
    (ends.folder / "site" / "site.pub").unlink()
    make_site_key(ends.folder / "site")


@pytest.mark.parametrize("change, sentence", [
    (after_the_round, "PERMISSION_DENIED: this payload is not announced to this site"),
    (with_another_key, "UNAUTHENTICATED: the site is not known, or the signature is not its own"),
])  # fmt: skip
def test_a_site_that_comes_back_too_late_or_with_another_key_is_refused(
    ends: Ends, change: Callable[[Ends], None], sentence: str
) -> None:
    site = ends.site("up")
    ends.wait_for(EARLY, "up")
    site.child.kill()
    site.wait(10)
    change(ends)
    again = ends.site("up")
    assert again.wait(60) == 1 and sentence in again.log.read_text()
    assert not ends.arrived["up"].exists()


def test_a_coordinator_that_starts_a_second_service_is_told(ends: Ends) -> None:
    line = [sys.executable, "-m", "server.bulk_service", str(ends.coordinator.folder), "--host", "127.0.0.1"]
    second = subprocess.run([*line, "--port", str(ends.port)], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2 and "cannot listen" in second.stderr and "Traceback" not in second.stderr
