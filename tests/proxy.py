"""A real nginx in front of a coordinator, with the settings that are shipped."""

import os
import shutil
import socket
import ssl
import time
from pathlib import Path
from string import Template

import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from benchmarks._consortium import SITES, Consortium
from common.address import Address, answers, free_port
from common.processes import Process
from server.certs import Certificates

SETTINGS = Path(__file__).parent.parent / "docker" / "proxy" / "nginx.conf.template"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed; `apt-get install nginx` brings it")


def write_settings(folder: Path, listen: Address, certificates: Certificates, superlink: int, bulk: int) -> Path:
    """Fill in the template as envsubst does. The two services listen on loopback, on these ports."""
    given = {
        "WARDROUND_PORT": listen,
        "WARDROUND_CERTS": certificates.server.parent,
        "WARDROUND_SUPERLINK": f"127.0.0.1:{superlink}",
        "WARDROUND_BULK": f"127.0.0.1:{bulk}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "nginx.conf"
    place.write_text(Template(SETTINGS.read_text()).safe_substitute(given))
    return place


def start_proxy(folder: Path, listen: Address, certificates: Certificates, superlink: int, bulk: int) -> Process:
    """Returns when it answers at `listen`. What it says and its access log are in `folder`/log."""
    return start_nginx(write_settings(folder, listen, certificates, superlink, bulk), listen, certificates.ca)


def start_nginx(settings: Path, listen: Address, ca: Path) -> Process:
    assert NGINX is not None
    folder = settings.parent
    process = Process([NGINX, "-p", str(folder), "-c", str(settings)], folder / "log", dict(os.environ), folder)
    end = time.monotonic() + 30
    while not answers(listen, ca):
        assert process.running and time.monotonic() < end, process.log.read_text()
        time.sleep(0.05)
    return process


class Caller:
    """Somebody who has the CA's certificate and no key: says what he likes, as bytes."""

    def __init__(self, address: Address, ca: Path) -> None:
        self.address, self.context = address, ssl.create_default_context(cafile=str(ca))

    def say(self, said: bytes) -> int | None:
        """The HTTP status of the answer; None where the connection was closed without one."""
        with (
            socket.create_connection((self.address.host, self.address.port), timeout=30) as plain,
            self.context.wrap_socket(plain, server_hostname=self.address.host) as connection,
        ):
            try:
                connection.sendall(said)
                heard = connection.recv(64)
            except (ConnectionError, ssl.SSLError):  # closed while there was more to say
                return None
        return int(heard.split()[1]) if heard.startswith(b"HTTP/1.1 ") else None

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> int | None:
        given = {"Host": self.address.host, "Content-Type": PROTOBUF_MEDIA_TYPE, "Content-Length": str(len(body)),
                 "Connection": "close", **headers}  # fmt: skip
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        return self.say("\r\n".join(lines).encode() + body)


class Proxied(Consortium):
    """Sites dial in to the proxy's one port; of the bulk channel only those in `with_bulk` are told."""

    with_bulk = SITES[:1]

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...]) -> None:
        super().__init__(folder, study, model, sites)
        self.proxy = Address(self.host, free_port())

    def addresses(self, site: str) -> tuple[object, ...]:
        return "--coordinator", self.proxy, *(("--bulk", self.proxy) if site in self.with_bulk else ())

    def serve(self) -> Process:
        served, certificates = super().serve(), self.coordinator.certificates
        self.nginx = start_proxy(self.folder / "proxy", self.proxy, certificates, self.port, self.bulk_port)
        self.stack.callback(lambda: self.nginx.stop())
        return served

    def restart_proxy(self, away_s: float) -> None:
        """Kill it, with all connections through it, and start it again after so long."""
        self.nginx.stop(0.0)
        time.sleep(away_s)
        settings = self.folder / "proxy" / "nginx.conf"
        self.nginx = start_nginx(settings, self.proxy, self.coordinator.certificates.ca)
