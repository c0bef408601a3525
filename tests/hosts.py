"""Hosts of their own on this machine: network namespaces on one bridge, each with its own address and loopback.

The coordinator's host is the machine itself: what it listens on at its own loopback, no other host reaches.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from pathlib import Path

import pytest

from common.lock import only_one

GATEWAY, COORDINATOR = "10.213.77.1", "10.213.78.1"
"""The bridge's addresses: that of the hosts' own network, and the coordinator's, to which a host has a route."""
BRIDGE, OURS = "wardround0", re.compile(r"(wardround|wr-out)\d+")
LONGEST_S = 1200.0
"""How long the tests of another file may keep the network."""


def allowed() -> bool:
    """Root in a container may lack the right to make a namespace."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


class Way(Enum):
    """What a cut link no longer carries."""

    UP = auto()
    """From the host to the coordinator."""
    DOWN = auto()
    BOTH = auto()


needs_hosts = pytest.mark.skipif(not allowed(), reason="network namespaces need root, its rights, and iproute2")


def call(*line: str) -> str:
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=30).stdout


class Host:
    """A namespace with one link to the bridge, and a route to the coordinator. `outer` is the link's end at the bridge,
    `inner` the host's own."""

    def __init__(self, number: int, stack: ExitStack) -> None:
        self.name, self.outer, self.inner = f"wardround{number}", f"wr-out{number}", f"wr-in{number}"
        self.mbit_per_s: float | None = None
        call("ip", "netns", "add", self.name)
        stack.callback(call, "ip", "netns", "delete", self.name)
        call("ip", "link", "add", self.outer, "type", "veth", "peer", "name", self.inner, "netns", self.name)
        # With the host its link would go too, but some time later.
        stack.callback(call, "ip", "link", "delete", self.outer)
        call("ip", "link", "set", self.outer, "master", BRIDGE, "up")
        call(*self.line("ip", "address", "add", f"10.213.77.{number + 1}/24", "dev", self.inner))
        for device in ("lo", self.inner):
            call(*self.line("ip", "link", "set", device, "up"))
        call(*self.line("ip", "route", "add", COORDINATOR, "via", GATEWAY))

    def line(self, *command: str) -> list[str]:
        """The command, on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def wall_off(self) -> None:
        """Leave the host its own network alone: to the coordinator it has no route."""
        call(*self.line("ip", "route", "delete", COORDINATOR))

    def slow(self, mbit_per_s: float) -> None:
        """Both directions: packets wait up to 50 ms for the line, and are dropped beyond that."""
        for way in (Way.UP, Way.DOWN):
            self.queue(way, "rate", f"{mbit_per_s}mbit", "burst", "16kb", "latency", "50ms")
        self.mbit_per_s = mbit_per_s

    def queue(self, way: Way, *bucket: str) -> None:
        """Let packets of one direction pass a token bucket; without one they pass as they come."""
        given = ("replace", "tbf", *bucket) if bucket else ("delete",)
        device = self.inner if way is Way.UP else self.outer
        line = ("tc", "qdisc", given[0], "dev", device, "root", *given[1:])
        call(*(self.line(*line) if way is Way.UP else line))

    @contextmanager
    def cut(self, way: Way) -> Iterator[None]:
        """The link carries nothing: as a cable that is pulled out, or packets of one direction are dropped."""
        if way is Way.BOTH:
            call("ip", "link", "set", self.outer, "down")
        else:
            self.queue(way, "rate", "8bit", "burst", "1", "limit", "1")
        try:
            yield
        finally:
            if way is Way.BOTH:
                call("ip", "link", "set", self.outer, "up")
            elif self.mbit_per_s is None:
                self.queue(way)
            else:
                self.slow(self.mbit_per_s)

    def dropped(self) -> int:
        """Packets that a slow line has dropped on their way to the host."""
        (queue,) = json.loads(call("tc", "-statistics", "-json", "qdisc", "show", "dev", self.outer, "root"))
        return int(queue["drops"])

    def reaches(self, address: str, port: int) -> bool:
        """Whether somebody takes a connection there from this host."""
        line = self.line("bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")
        return subprocess.run(line, capture_output=True, timeout=30, check=False).returncode == 0


def clear() -> None:
    """Take away what tests that were killed have left of their network."""
    for link in json.loads(call("ip", "-json", "link", "show")):
        if OURS.fullmatch(link["ifname"]):
            call("ip", "link", "delete", link["ifname"])
    for namespace in json.loads(call("ip", "-json", "netns", "list") or "[]"):
        if OURS.fullmatch(namespace["name"]):
            call("ip", "netns", "delete", namespace["name"])


class Network:
    """So many hosts. Use as a context manager; afterwards nothing of it is left.

    There is one on this machine at a time, since its names and addresses are: a second one waits.
    """

    def __init__(self, count: int) -> None:
        with ExitStack() as building:
            building.enter_context(only_one(Path(tempfile.gettempdir()) / "wardround-hosts.lock", LONGEST_S))
            clear()
            call("ip", "link", "add", BRIDGE, "type", "bridge")
            building.callback(call, "ip", "link", "delete", BRIDGE)
            for address in (f"{GATEWAY}/24", f"{COORDINATOR}/32"):
                call("ip", "address", "add", address, "dev", BRIDGE)
            call("ip", "link", "set", BRIDGE, "up")
            self.hosts = [Host(number, building) for number in range(1, count + 1)]
            self.stack = building.pop_all()

    def __enter__(self) -> list[Host]:
        return self.hosts

    def __exit__(self, *_: object) -> None:
        self.stack.close()
