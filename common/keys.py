"""Keys in OpenSSH's format, as Flower reads them: a site's identity (P-384), and a reviewer's (Ed25519), who signs the
code that sites run."""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common.errors import UserError

PRIVATE_NAME = "site.key"
PUBLIC_NAME = "site.pub"
REVIEWER_PRIVATE, REVIEWER_PUBLIC = "reviewer.key", "reviewer.pub"


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read.

    Raises:
        UserError: the file is already there: a key is never overwritten.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(
            f"{path}: there is a key already.", "Keep it, or move it away before making a new one."
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def make_site_key(folder: Path) -> tuple[Path, Path]:
    """Make `site.key` (mode 0600, stays at the site) and `site.pub` (goes to the coordinator) in `folder`."""
    return write_pair(ec.generate_private_key(ec.SECP384R1()), folder / PRIVATE_NAME, folder / PUBLIC_NAME)


def make_reviewer_key(folder: Path) -> tuple[Path, Path]:
    """Make `reviewer.key` (mode 0600) and `reviewer.pub` (goes to the sites) in `folder`."""
    return write_pair(ed25519.Ed25519PrivateKey.generate(), folder / REVIEWER_PRIVATE, folder / REVIEWER_PUBLIC)


def write_pair(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, private: Path, public: Path
) -> tuple[Path, Path]:
    """Raises: UserError: there is a private key already."""
    private.parent.mkdir(parents=True, exist_ok=True)
    write_private(
        private,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public.write_bytes(line + b"\n")
    return private, public


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The public half of a P-384 key.

    Raises:
        UserError: missing, unreadable, another kind of key, or a private key.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise UserError(f"{path}: cannot be read.", "Give the site.pub that the site sent.") from None
    try:
        return parse_public_key(content)
    except ValueError as error:
        raise UserError(
            f"{path}: {error}.", "Give the site.pub that `wardround-site keygen` or `ssh-keygen -t ecdsa -b 384` made."
        ) from None


def parse_public_key(content: bytes) -> ec.EllipticCurvePublicKey:
    """One line in OpenSSH's format, as in a site.pub.

    Raises:
        ValueError: it is not a P-384 public key.
    """
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not a P-384 key")
    return key


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's own key.

    Raises:
        UserError: missing, unreadable, encrypted, or another kind of key.
    """
    remedy = "Give the site.key that `wardround-site keygen` made."
    key = load_private(path, remedy)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(f"{path}: not a P-384 key.", remedy)
    return key


def load_private(path: Path, remedy: str) -> serialization.SSHPrivateKeyTypes:
    """Raises: UserError: missing, unreadable or encrypted."""
    try:
        return serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError:
        raise UserError(f"{path}: cannot be read.", remedy) from None
    except (TypeError, ValueError, UnsupportedAlgorithm):
        # TypeError is what the library raises for a key under a passphrase.
        raise UserError(f"{path}: not a private key without passphrase.", remedy) from None


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """As `ssh-keygen -lf` prints it, to be compared by telephone."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA over SHA-384."""
    return key.sign(message, ec.ECDSA(hashes.SHA384()))


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the holder of the key signed the message (`sign`)."""
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def reviewer_key(line: str) -> ed25519.Ed25519PublicKey:
    """A reviewer's public key from its line, as it stands in `reviewer.pub`.

    Raises:
        ValueError: it is none.
    """
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError("this is not the line of an Ed25519 public key (ssh-ed25519 AAAA...); copy reviewer.pub")
    return key


def read_reviewer_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """A reviewer's own key.

    Raises:
        UserError: missing, unreadable, encrypted, or another kind of key.
    """
    remedy = "Give the reviewer.key that `wardround bundle keygen` made."
    key = load_private(path, remedy)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key.", remedy)
    return key
