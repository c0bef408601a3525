"""The proxy on the way out: how it is named, and a TLS server behind a real one."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.address import Address, answers, free_port
from common.errors import UserError
from common.way_out import dial, proxy_to, settle
from server.certs import Certificates, make_certificates
from tests.http_proxy import HttpProxy

OUTSIDE = "127.0.0.2"
"""Stands for a host of the outside: loopback's other addresses are not left out."""
LOOPBACK = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize("given, settled", [
    ({}, {}),
    ({"HTTPS_PROXY": "http://p:1"}, {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://p:1"}),
    ({"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:2"},
     {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://p:1"}),
])  # fmt: skip
def test_both_spellings_say_the_same_and_loopback_is_left_out(given: dict[str, str], settled: dict[str, str]) -> None:
    environment = dict(given)
    settle(environment)
    assert environment == {**settled, "no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}


def test_who_is_left_out_already_stays_so() -> None:
    environment = {"NO_PROXY": "intranet.example, ::1"}
    settle(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intranet.example,::1,localhost,127.0.0.1"
    again = dict(environment)
    settle(again)
    assert again == environment


def by(patch: pytest.MonkeyPatch, proxy: str, direct: str = "") -> None:
    patch.setenv("https_proxy", proxy)
    patch.setenv("no_proxy", direct)


def test_a_host_that_is_left_out_is_dialled_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, "http://proxy.example:3128", "localhost,intranet.example")
    assert proxy_to("localhost") is None and proxy_to("a.intranet.example") is None
    found = proxy_to("coordinator.example")
    assert found is not None and (found.hostname, found.port) == ("proxy.example", 3128)


@pytest.mark.parametrize("named", ["http://proxy.example", "socks5://proxy.example:1", "http://:3128", "http://p:x"])
def test_what_names_no_http_proxy_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    by(monkeypatch, named)
    with pytest.raises(UserError, match="HTTPS_PROXY") as refused:
        proxy_to("coordinator.example")
    assert named not in refused.value.what


class Here(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certs"), [OUTSIDE])


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Address]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    with ThreadingHTTPServer((OUTSIDE, 0), Here) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield Address(OUTSIDE, made.server_port)
        made.shutdown()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpProxy]:
    place = Address("127.0.0.1", free_port())
    with HttpProxy(place, tmp_path_factory.mktemp("proxy"), "site:p@ss") as made:
        yield made


def test_a_server_is_reached_through_it(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, server: Address, proxy: HttpProxy
) -> None:
    by(monkeypatch, f"http://site:p%40ss@{proxy.address}")
    assert answers(server, certificates.ca)
    assert not answers(Address(OUTSIDE, free_port()), certificates.ca), "nobody listens there"


def test_a_proxy_that_refuses_is_named_without_the_password(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, server: Address, proxy: HttpProxy
) -> None:
    by(monkeypatch, f"http://site:secret@{proxy.address}")
    with pytest.raises(UserError, match="HTTP 407") as refused:
        answers(server, certificates.ca)
    assert "secret" not in refused.value.what and str(server) in refused.value.what


def test_a_proxy_that_is_away_is_as_nobody(monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> None:
    by(monkeypatch, f"http://127.0.0.1:{free_port()}")
    assert not answers(Address(OUTSIDE, 1), certificates.ca)
    with pytest.raises(OSError):
        dial(OUTSIDE, 1, 1.0)
