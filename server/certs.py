"""Certificates for a test consortium: one certificate authority and one server certificate.

A real consortium uses its own PKI and puts `ca.pem`, `server.pem` and `server.key` in the same places.
"""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError
from common.keys import write_private
from server.run_folder import write_text

AUTHORITY = "Wardround test consortium"
CA_DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Always in the certificate: the coordinator's own executor talks to it over loopback."""


@dataclass(frozen=True)
class Certificates:
    """Where the four files of a folder lie. `ca` is what sites get; the two keys never leave."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path


def in_folder(folder: Path) -> Certificates:
    return Certificates(
        ca=folder / "ca.pem",
        ca_key=folder / "ca.key",
        server=folder / "server.pem",
        server_key=folder / "server.key",
    )


def alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def usage(*, signs: bool) -> x509.KeyUsage:
    """A CA signs certificates, a server signs its TLS handshake; neither does anything else."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def builder(
    subject: str, key: ec.EllipticCurvePublicKey, ca: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """What both certificates have. Args: `ca`: of whoever signs it."""
    # A site's clock may be a little behind ours.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(AUTHORITY))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca), critical=False)
    )


def make_certificates(folder: Path, hosts: list[str], days: int = 365) -> Certificates:
    """Make a CA, which holds for ten years, and a server certificate for `hosts` (names or IP addresses) and loopback.

    Args:
        days: of the server's.

    Raises:
        UserError: the folder holds keys already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = in_folder(folder)
    ca_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca = (
        builder(AUTHORITY, ca_key.public_key(), ca_key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs=True), critical=True)
        .sign(ca_key, hashes.SHA384())
    )
    write_private(files.ca_key, private_pem(ca_key))
    write_private(files.server_key, private_pem(server_key))
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    write_server(files, ca_key, server_key.public_key(), hosts, days)
    return files


def renew_certificate(folder: Path, hosts: list[str], days: int = 365) -> Certificates:
    """Another server certificate of the CA that `make_certificates` made: the sites keep their ca.pem.

    Args:
        hosts: all of them again.

    Raises:
        UserError: the CA's key or the server's is not there.
    """
    files = in_folder(folder)
    keys = []
    for path in (files.ca_key, files.server_key):
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path}: no private key can be read there.", "Put back the one that was there.") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UserError(f"{path}: not a key that `wardround certs make` made.", "Let your own PKI renew it.")
        keys.append(key)
    write_server(files, keys[0], keys[1].public_key(), hosts, days)
    return files


def write_server(
    files: Certificates, ca_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePublicKey, hosts: list[str], days: int
) -> None:
    names = [alternative_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK])]
    server = (
        builder("Wardround coordinator", key, ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    write_text(files.server, server.public_bytes(serialization.Encoding.PEM).decode())
