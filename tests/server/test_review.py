"""Signed bundles: who has signed what, and the hub that hands it to the SuperLink."""

import json
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab

from common.errors import UserError
from common.keys import make_reviewer_key, make_site_key, read_reviewer_key, reviewer_key
from server.bundle import app_spec, build_bundle, bundle_sha256
from server.cli import main
from server.coordinator import Coordinator
from server.hub import running_hub
from server.review import is_signed, publish, published, read_signatures, sign_bundle, signatures_of
from tests.command import call


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_reviewer_key(tmp_path / "alice")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    place = tmp_path / "bundle.fab"
    place.write_bytes(build_bundle())
    return place


def flower_accepts(bundle: Path, trusted: dict[str, str]) -> bool:
    """What a SuperNode says of it, by Flower's own code: where this changes, the signatures are worth nothing."""
    content = bundle.read_bytes()
    told = {one.public_key_id: json.dumps(one.model_dump(exclude={"public_key_id"})) for one in read_signatures(bundle)}
    return _verify_fab(Fab(bundle_sha256(content), content, {**told, "valid_license": "Valid"}), trusted)


def test_a_signature_is_what_flowers_nodes_accept(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign_bundle(bundle, read_reviewer_key(keys[0]), "alice")
    line, stranger = keys[1].read_text(), make_reviewer_key(tmp_path / "mallory")[1].read_text()
    assert flower_accepts(bundle, {"alice": line})
    assert not flower_accepts(bundle, {"alice": stranger}) and not flower_accepts(bundle, {"bob": line})
    bundle.write_bytes(bundle.read_bytes() + b"\0")
    assert not flower_accepts(bundle, {"alice": line})


def test_reviewers_sign_beside_each_other_and_again(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    bob = make_reviewer_key(tmp_path / "bob")
    for name, private in (("alice", keys[0]), ("bob", bob[0]), ("alice", keys[0])):
        sign_bundle(bundle, read_reviewer_key(private), name)
    signatures = {one.public_key_id: one for one in read_signatures(bundle)}
    assert sorted(signatures) == ["alice", "bob"] and len(read_signatures(bundle)) == 2
    content = bundle.read_bytes()
    assert is_signed(content, signatures["bob"], reviewer_key(bob[1].read_text()))
    assert not is_signed(content, signatures["alice"], reviewer_key(bob[1].read_text()))


def test_a_sites_key_signs_nothing(tmp_path: Path) -> None:
    private, public = make_site_key(tmp_path)
    with pytest.raises(UserError, match="not an Ed25519 key"):
        read_reviewer_key(private)
    with pytest.raises(ValueError, match="not the line of an Ed25519 public key"):
        reviewer_key(public.read_text())


def test_only_a_signed_bundle_of_this_code_is_run(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path / "coordinator")
    assert published(coordinator) is None
    with pytest.raises(UserError, match="nobody has signed"):
        publish(coordinator, bundle)
    sign_bundle(bundle, read_reviewer_key(keys[0]), "alice")
    publish(coordinator, bundle)
    place = published(coordinator)
    assert place is not None and read_signatures(place) == read_signatures(bundle)
    place.write_bytes(b"other code")
    with pytest.raises(UserError, match="not of the code that runs here"):
        published(coordinator)


def asked(address: str, question: bytes) -> dict:
    request = urllib.request.Request(f"{address}/hub/fetch-fab", data=question)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_hub_has_the_published_bundle_and_nothing_else(
    bundle: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    coordinator = Coordinator(tmp_path / "coordinator")
    name, version = app_spec().split("==")
    question = json.dumps({"app_id": name, "app_version": version, "flwr_version": "1.41.0"}).encode()
    with running_hub(coordinator) as address:
        with pytest.raises(HTTPError, match="404"):
            asked(address, question)
        sign_bundle(bundle, read_reviewer_key(keys[0]), "alice")
        publish(coordinator, bundle)
        answer = asked(address, question)
        with urllib.request.urlopen(answer["fab_url"], timeout=10) as file:
            assert file.read() == bundle.read_bytes()
        assert [one["public_key_id"] for one in answer["verifications"]] == ["alice"]
        other = json.dumps({"app_id": "@flwrlabs/other", "app_version": version}).encode()
        for wrong in (other, b"[]", b"{", b"", b"x" * 20_000):
            with pytest.raises(HTTPError, match="404"):
                asked(address, wrong)
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(address, timeout=10)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(main, "bundle", "keygen", "alice")
    assert "SHA-256" in call(main, "bundle", "build", "code.fab").stdout
    verify = ("bundle", "verify", "code.fab", "--reviewer", "alice=alice/reviewer.pub")
    unsigned = call(main, *verify)
    assert unsigned.returncode == 1 and "signed by alice: NO" in unsigned.stdout
    call(main, "bundle", "sign", "code.fab", "--key", "alice/reviewer.key", "--name", "alice")
    signed = call(main, *verify)
    assert signed.returncode == 0 and "installed here: yes" in signed.stdout and "signed by alice: yes" in signed.stdout
    assert call(main, "bundle", "publish", "coordinator", "code.fab").returncode == 0
    signatures_of(Path("code.fab")).write_text("{}")
    damaged = call(main, *verify)
    assert damaged.returncode == 2 and "these are not signatures" in damaged.stderr
    absent = call(main, "bundle", "sign", "none.fab", "--key", "alice/reviewer.key", "--name", "alice")
    assert absent.returncode == 2 and "cannot be read" in absent.stderr
