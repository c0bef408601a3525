import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common.errors import UserError
from common.keys import make_site_key, read_private_key, read_public_key, sign, signed_by


def test_a_pair_that_belongs_together(tmp_path: Path) -> None:
    private, public = make_site_key(tmp_path / "keys")
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    assert key.public_key() == serialization.load_ssh_public_key(public.read_bytes())
    read_public_key(public)


def test_only_its_owner_reads_the_private_key(tmp_path: Path) -> None:
    private, _ = make_site_key(tmp_path)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, _ = make_site_key(tmp_path)
    before = private.read_bytes()
    with pytest.raises(UserError, match="there is a key already"):
        make_site_key(tmp_path)
    assert private.read_bytes() == before


def test_other_files_are_no_public_key(tmp_path: Path) -> None:
    private, _ = make_site_key(tmp_path)
    other = tmp_path / "other.pub"
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    other.write_bytes(key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    with pytest.raises(UserError, match="not a P-384 key"):
        read_public_key(other)
    with pytest.raises(UserError, match="not a public key"):
        read_public_key(private)
    with pytest.raises(UserError, match="cannot be read"):
        read_public_key(tmp_path / "absent.pub")


def test_only_the_holder_of_a_key_can_sign(tmp_path: Path) -> None:
    private, public = make_site_key(tmp_path / "one")
    _, other = make_site_key(tmp_path / "other")
    signature = sign(read_private_key(private), b"message")
    assert signed_by(read_public_key(public), signature, b"message")
    assert not signed_by(read_public_key(public), signature, b"another message")
    assert not signed_by(read_public_key(public), b"", b"message")
    assert not signed_by(read_public_key(other), signature, b"message")


def test_other_files_are_no_private_key(tmp_path: Path) -> None:
    _, public = make_site_key(tmp_path)
    other = tmp_path / "other.key"
    key = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    with pytest.raises(UserError, match="not a private key without passphrase"):
        read_private_key(public)
    with pytest.raises(UserError, match="not a P-384 key"):
        read_private_key(other)
    with pytest.raises(UserError, match="cannot be read"):
        read_private_key(tmp_path / "absent.key")
