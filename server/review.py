"""Signatures of reviewers under a bundle, and the bundle that a coordinator runs.

A site that names reviewers in its policy runs no bundle but one that one of them has signed. What is signed is
Flower's: the time of signing as 8 bytes, then the bundle's SHA-256 (flwr 1.41, supernode/start_client_internal.py,
`_verify_fab`).
"""

import base64
import hashlib
import shutil
import time
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.strict import Strict
from server.bundle import build_bundle, bundle_sha256
from server.coordinator import Coordinator
from server.run_folder import write_json

BUNDLE = "wardround.fab"


class Signature(Strict):
    """One reviewer's; the fields are those that Flower's hub answers with."""

    public_key_id: str
    """The reviewer's name, by which a site's policy finds the key."""
    signature: str
    """base64url without padding."""
    signed_at: int
    """Seconds since 1970."""


SIGNATURES = TypeAdapter(list[Signature])


def signatures_of(bundle: Path) -> Path:
    """The file beside a bundle that holds its signatures."""
    return bundle.with_name(bundle.name + ".signatures.json")


def read_signatures(bundle: Path) -> list[Signature]:
    """Raises: UserError: the file beside the bundle is damaged."""
    place = signatures_of(bundle)
    if not place.exists():
        return []
    try:
        return SIGNATURES.validate_json(place.read_bytes())
    except ValidationError:
        raise UserError(f"{place}: these are not signatures.", "Let the reviewers sign again.") from None


def message(bundle: bytes, signed_at: int) -> bytes:
    return signed_at.to_bytes(8, "big") + hashlib.sha256(bundle).digest()


def sign_bundle(bundle: Path, key: ed25519.Ed25519PrivateKey, name: str) -> Path:
    """Add a reviewer's signature, in the place of an older one of that name; returns the signatures' file."""
    now = int(time.time())
    signed = base64.urlsafe_b64encode(key.sign(message(bundle.read_bytes(), now))).rstrip(b"=").decode()
    others = [one for one in read_signatures(bundle) if one.public_key_id != name]
    place = signatures_of(bundle)
    write_json(place, SIGNATURES.dump_python([*others, Signature(public_key_id=name, signature=signed, signed_at=now)]))
    return place


def is_signed(bundle: bytes, one: Signature, key: ed25519.Ed25519PublicKey) -> bool:
    """Whether the holder of the key signed these bytes."""
    padded = one.signature + "=" * (-len(one.signature) % 4)
    try:
        key.verify(base64.urlsafe_b64decode(padded), message(bundle, one.signed_at))
    except InvalidSignature:
        return False
    return True


def publish(coordinator: Coordinator, bundle: Path) -> None:
    """Make this the bundle that the coordinator's runs ship.

    Raises:
        UserError: nobody has signed it.
    """
    if not read_signatures(bundle):
        raise UserError(f"{bundle}: nobody has signed this bundle.", "Let a reviewer run `wardround bundle sign`.")
    coordinator.bundle.mkdir(parents=True, exist_ok=True)
    for source, name in ((signatures_of(bundle), signatures_of(Path(BUNDLE)).name), (bundle, BUNDLE)):
        shutil.copyfile(source, coordinator.bundle / name)


def published(coordinator: Coordinator) -> Path | None:
    """The coordinator's signed bundle, if it has one.

    Raises:
        UserError: it is not of the code that runs here, so a run would not be what it was reviewed for.
    """
    place = coordinator.bundle / BUNDLE
    if not place.exists():
        return None
    if bundle_sha256(place.read_bytes()) != bundle_sha256(build_bundle()):
        raise UserError(
            f"{place}: the signed bundle is not of the code that runs here.",
            "Build one with `wardround bundle build`, let it be reviewed and signed, and publish it; or install the "
            "version that was signed.",
        )
    return place
