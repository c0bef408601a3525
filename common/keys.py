"""A site's identity: a P-384 key pair in OpenSSH's format, as Flower's node authentication reads it."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import UserError

PRIVATE_NAME = "site.key"
PUBLIC_NAME = "site.pub"


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
    key = ec.generate_private_key(ec.SECP384R1())
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / PRIVATE_NAME, folder / PUBLIC_NAME
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
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path}: not a public key.", "Give the site.pub that `wardround-site keygen` made.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(
            f"{path}: not a P-384 key.", "Make one with `wardround-site keygen` or `ssh-keygen -t ecdsa -b 384`."
        )
    return key


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's own key.

    Raises:
        UserError: missing, unreadable, encrypted, or another kind of key.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError:
        raise UserError(f"{path}: cannot be read.", "Give the site.key that `wardround-site keygen` made.") from None
    except (TypeError, ValueError, UnsupportedAlgorithm):
        # TypeError is what the library raises for a key under a passphrase.
        raise UserError(f"{path}: not a private key without passphrase.", "Give this site's site.key.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(f"{path}: not a P-384 key.", "Give the site.key that `wardround-site keygen` made.")
    return key


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
