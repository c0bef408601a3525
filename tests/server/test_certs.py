"""Certificates and the way a site checks a coordinator, over real TLS on loopback."""

import re
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_server

import pytest
from cryptography import x509

from common.address import Address, answers, free_port, parse_address
from common.certificates import DAY_S, DailyLook, validity_in
from common.errors import UserError
from server.certs import Certificates, make_certificates, renew_certificate
from server.coordinator import Coordinator, prepare


@contextmanager
def server(files: Certificates) -> Iterator[Address]:
    """A TLS server on loopback that shakes hands and hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    with create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except (ssl.SSLError, OSError):
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("127.0.0.1", listening.getsockname()[1])
        listening.shutdown(2)
    thread.join(5)


def test_our_ca_is_enough_and_another_is_refused(tmp_path: Path) -> None:
    ours, theirs = make_certificates(tmp_path / "ours", []), make_certificates(tmp_path / "theirs", [])
    with server(ours) as address:
        assert answers(address, ours.ca)
        with pytest.raises(UserError, match="certificate is refused"):
            answers(address, theirs.ca)


def test_nobody_there_is_no_error(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [])
    assert not answers(Address("127.0.0.1", free_port()), files.ca)


def test_an_end_is_warned_of_at_once_and_then_daily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_certificates(tmp_path, [], days=20)
    daily = DailyLook(lambda: [validity_in("it", files.server)])
    (warning,) = daily.warnings()
    assert re.fullmatch(r"it ends on [-0-9]{10}, in 19 days: nobody can connect after that", warning)
    assert daily.warnings() == []
    tomorrow = time.monotonic() + DAY_S
    monkeypatch.setattr(time, "monotonic", lambda: tomorrow)
    assert daily.warnings() == [warning]


def test_a_coordinator_does_not_start_with_a_certificate_that_has_ended(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", [], days=0)
    with pytest.raises(UserError, match=r"server\.pem ended on"):
        prepare(Coordinator(tmp_path), Address("127.0.0.1", 8000))


def test_what_a_site_is_told_of_a_certificate_that_has_ended(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [], days=0)
    with server(files) as address, pytest.raises(UserError, match="has expired") as refused:
        answers(address, files.ca)
    assert "new certificate" in refused.value.remedy


def test_a_renewed_certificate_needs_nothing_at_the_sites(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [], days=0)
    at_the_sites = files.ca.read_bytes()
    renew_certificate(tmp_path, ["coordinator.example.org"])
    with server(files) as address:
        assert answers(address, files.ca) and files.ca.read_bytes() == at_the_sites
    assert validity_in("it", files.server).days == 364
    files.ca_key.unlink()
    with pytest.raises(UserError, match=r"ca\.key: no private key can be read"):
        renew_certificate(tmp_path, [])


def test_hosts_are_in_the_certificate(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, ["coordinator.example.org", "10.1.2.3"])
    certificate = x509.load_pem_x509_certificate(files.server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "127.0.0.1", "::1"]


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [])
    assert {stat.S_IMODE(path.stat().st_mode) for path in (files.ca_key, files.server_key)} == {0o600}
    with pytest.raises(UserError, match="there is a key already"):
        make_certificates(tmp_path, [])


@pytest.mark.parametrize("text", ["coordinator", ":8000", "host:", "host:port", "host:70000", "host:0"])
def test_other_forms_are_no_address(text: str) -> None:
    with pytest.raises(UserError, match="is not an address"):
        parse_address(text)


def test_addresses_are_read_and_written() -> None:
    assert parse_address("a.example:8000") == Address("a.example", 8000)
    assert str(parse_address("[::1]:8000")) == "[::1]:8000"
    assert Address("0.0.0.0", 9).from_here == Address("127.0.0.1", 9)
