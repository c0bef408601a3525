"""A hospital's HTTP proxy on the way out: a real one (proxy.py), which writes down to whom it lets through."""

import os
import re
import socket
import sys
import time
from pathlib import Path

from common.address import Address
from common.processes import Process


class HttpProxy:
    """Use as a context manager."""

    def __init__(self, address: Address, folder: Path, password: str | None = None) -> None:
        """`password`: `USER:PASSWORD` that it asks for."""
        folder.mkdir(parents=True, exist_ok=True)
        self.address, self.log = address, folder / "log"
        line = [sys.executable, "-m", "proxy", "--hostname", address.host, "--port", str(address.port), "--num-workers",
                "1", "--num-acceptors", "1", "--data-dir", str(folder), "--log-file", str(self.log),
                *(["--basic-auth", password] if password else [])]  # fmt: skip
        self.process = Process(line, folder / "output", dict(os.environ), folder)
        end = time.monotonic() + 60
        while not self.listens():
            assert self.process.running and time.monotonic() < end, self.process.log.read_text()
            time.sleep(0.05)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address.host, self.address.port)) == 0

    def let_through(self) -> set[str]:
        """HOST:PORT of each connection that has ended."""
        return set(re.findall(r" CONNECT (\S+) ", self.log.read_text()))

    def __enter__(self) -> "HttpProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
