"""A gigabyte (or --mb) each way by the bulk channel, against the same bytes in Flower's messages, over TLS on loopback.

Ours, once before and once after Flower's, mean of both: a coordinator's service and a site's end, each a process of its
own; a file up, a file down, both checked against their manifests. Flower's: a real SuperLink and SuperNode with a
registered key, its messages in memory and not in a database, which is faster; a message there and back, as two of half
the size one after the other, since one of a gigabyte would stand in about 16 GB of its processes together.

`speed_ratio`: Flower's seconds over ours, for the bytes there and back. `memory_ratio`: ours over Flower's, the larger
of both ends; of each process the peak memory above that of the same with one megabyte, and of Flower's processes at an
end only the largest. `flower_start_s`, what a message of a megabyte takes, is part of Flower's seconds: an app is
started for each message.

    python -m benchmarks.bulk [--mb N | --quick] [--json]
"""

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._flower_echo import ENDS, SITE, measure, peak
from client.bulk import Channel, download, upload
from common.address import Address, answers, free_port
from common.bulk.opening import Transfer
from common.bulk.pace import Pace
from common.keys import make_site_key, read_private_key
from common.processes import KEPT_MEMORY, Process
from common.transfer.manifest import Manifest, manifest_from, manifest_of
from server.bulk_spool import Spool
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site

FULL_MB, QUICK_MB, SMALL = 1000, 10, 10**6
SHARD = 64 * 2**20
MESSAGES = 2
WRITTEN_AT_ONCE = 2**20


@dataclass(frozen=True)
class Moved:
    """Seconds of a payload up and down, and the peak memory of either end in bytes."""

    up: float
    down: float
    coordinator: int
    site: int


def transfer_of(direction: str, manifest: Manifest) -> Transfer:
    values = {"direction": direction, "site": SITE, "study": "0" * 64, "run": "benchmark", "round": 1}
    return Transfer.model_validate({**values, "sha256": manifest.sha256})


def random_file(path: Path, size: int) -> Manifest:
    with path.open("wb") as file:
        for start in range(0, size, WRITTEN_AT_ONCE):
            file.write(os.urandom(min(WRITTEN_AT_ONCE, size - start)))
    return manifest_of(path, SHARD)


def site_end(folder: Path, port: int) -> None:
    """The site's process: prints seconds up and down, and its own peak memory."""
    manifest = manifest_from(json.loads((folder / "manifest.json").read_text()))
    coordinator = Coordinator(folder / "coordinator")
    key = read_private_key(folder / "site" / "site.key")
    channel = Channel(Address("127.0.0.1", port), coordinator.certificates.ca, key, Pace(None))
    start = time.monotonic()
    upload(channel, transfer_of("up", manifest), folder / "payload")
    middle = time.monotonic()
    download(channel, transfer_of("down", manifest), manifest, folder / "fetched")
    end = time.monotonic()
    print(json.dumps([middle - start, end - middle, peak(Path("/proc/self/status"))]))


def prepared(folder: Path, size: int) -> Path:
    """A payload with its manifest, a coordinator's folder that expects and offers it; returns where it arrives."""
    folder.mkdir()
    manifest = random_file(folder / "payload", size)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    coordinator = Coordinator(folder / "coordinator")
    make_certificates(coordinator.folder / "certs", ["localhost"])
    _, public = make_site_key(folder / "site")
    add_site(coordinator, SITE, public)
    spool = Spool(coordinator.bulk)
    spool.offer(transfer_of("down", manifest), manifest, folder / "payload")
    return spool.expect(transfer_of("up", manifest), manifest)


def move(size: int) -> Moved:
    """One payload up and down between two fresh processes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary) / "both", free_port()
        arrived = prepared(folder, size)
        coordinator = Coordinator(folder / "coordinator")
        line = [sys.executable, "-m", "server.bulk_service", str(coordinator.folder), "--host", "127.0.0.1"]
        service = [*line, "--port", str(port)]
        environment = {**os.environ, **KEPT_MEMORY}
        with Process(service, folder / "service.log", environment, Path.cwd()) as process:
            while not answers(Address("127.0.0.1", port), coordinator.certificates.ca):
                time.sleep(0.1)
            site = [sys.executable, "-m", "benchmarks.bulk", "--site", str(folder), str(port)]
            told = subprocess.run(site, env=environment, capture_output=True, text=True, check=True).stdout
            up, down, memory = json.loads(told)
            there = peak(Path(f"/proc/{process.child.pid}/status"))
        assert filecmp.cmp(arrived, folder / "payload", shallow=False)
        assert filecmp.cmp(folder / "fetched", folder / "payload", shallow=False)
        return Moved(up, down, there, memory)


def added_memory(small: dict[str, int], large: dict[str, int]) -> dict[str, int]:
    """By end: bytes that the process which grew most had above its peak with a small payload."""
    return {end: max(large[name] - small[name] for name in names) for end, names in ENDS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten megabytes: checks that the benchmark runs")
    parser.add_argument("--mb", type=int, default=FULL_MB, help="million bytes each way")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--site", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.site:
        site_end(Path(given.site[0]), int(given.site[1]))
        return
    size = (QUICK_MB if given.quick else given.mb) * 10**6
    small, before = move(SMALL), move(size)
    flower_small, flower = measure(SMALL, size // MESSAGES, MESSAGES)
    after = move(size)
    seconds = (before.up + before.down + after.up + after.down) / 2
    theirs = added_memory(flower_small.peaks, flower.peaks)
    ours = {
        "coordinator": max(before.coordinator, after.coordinator) - small.coordinator,
        "site": max(before.site, after.site) - small.site,
    }
    if not given.json:
        print(f"{size / 1e6:.0f} MB each way; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for name, moved in (("before", before), ("after", after)):
            print(f"bulk channel, {name} Flower: up {moved.up:.1f} s, down {moved.down:.1f} s")
        print(f"Flower's messages: {flower.seconds:.1f} s; a message of 1 MB: {flower_small.seconds:.1f} s")
        for end in ENDS:
            print(f"memory added at the {end}: {ours[end] / 1e6:.0f} MB; Flower {theirs[end] / 1e6:.0f} MB")
    ratios = {
        "speed_ratio": flower.seconds / seconds,
        "memory_ratio": max(ours[end] / theirs[end] for end in ENDS),
        "bulk_s": seconds,
        "flower_s": flower.seconds,
        "flower_start_s": flower_small.seconds,
    }
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
