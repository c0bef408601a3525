"""Where a coordinator listens, and whether one with a certificate that we trust answers there."""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.way_out import dial

REMEDIES = {
    9: "Set this machine's clock; where it is right, the coordinator's certificate is for later.",
    10: "The coordinator needs a new certificate; where it has one, set this machine's clock.",
}
"""By OpenSSL's code of what is wrong with a certificate: it does not hold yet, it has ended."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def from_here(self) -> "Address":
        """Where a process on this machine reaches a server that listens on this address."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)


def parse_address(text: str) -> Address:
    """Read `HOST:PORT` (`[HOST]:PORT` for IPv6).

    Raises:
        UserError: another form.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{text!r} is not an address.", "Write HOST:PORT, for example coordinator.example.org:8000.")
    return Address(host, int(port))


def server_certificate(address: Address, ca: Path) -> bytes | None:
    """The certificate (DER) of the server at `address`, which `ca` signed for this host; None where nobody answers.

    Raises:
        UserError: a server answers there with another certificate, or with one that does not hold now; or the proxy on
            the way out refuses.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        raise UserError(f"{ca}: not a certificate file.", "Give the coordinator's ca.pem.") from None
    try:
        with dial(address.host, address.port, 5.0) as connection:
            with context.wrap_socket(connection, server_hostname=address.host) as secured:
                return secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"{address}: the server's certificate is refused ({error.verify_message}).",
            REMEDIES.get(
                error.verify_code, "Use the host name and the CA that the coordinator's certificate was made for."
            ),
        ) from None
    except OSError:
        return None


def answers(address: Address, ca: Path) -> bool:
    """Whether a server whose certificate `ca` signed for this host answers at `address`.

    Raises:
        UserError: as `server_certificate`.
    """
    return server_certificate(address, ca) is not None


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
