"""A coordinator's folder and its commands, without a running SuperLink."""

import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.address import Address, free_port
from common.errors import UserError
from common.keys import make_site_key
from server.bulk_settings import BulkSettings, write_bulk_settings
from server.certs import make_certificates
from server.cli import main
from server.coordinator import (
    CONNECTION,
    Coordinator,
    add_site,
    flower,
    prepare,
    revoke_site,
    revoked_sites,
    rotate_site,
    site_keys,
    site_states,
)
from server.serve import Serving
from tests.command import call


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


def key_of(folder: Path) -> Path:
    return make_site_key(folder)[1]


def test_one_key_a_site_and_one_site_a_key(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south = key_of(tmp_path / "north"), key_of(tmp_path / "south")
    add_site(coordinator, "north", north)
    with pytest.raises(UserError, match="this is the key of site 'north'"):
        add_site(coordinator, "south", north)
    with pytest.raises(UserError, match="'north' has a key already"):
        add_site(coordinator, "north", south)
    add_site(coordinator, "south", south)
    assert {name: path.read_bytes() for name, path in site_keys(coordinator).items()} == {
        "north": north.read_bytes(),
        "south": south.read_bytes(),
    }


def test_a_revoked_key_is_out_for_good(coordinator: Coordinator, tmp_path: Path) -> None:
    old, new, third = (key_of(tmp_path / name) for name in ("old", "new", "third"))
    add_site(coordinator, "north", old)
    revoke_site(coordinator, "north")
    assert not site_keys(coordinator) and revoked_sites(coordinator) == {"north"}
    with pytest.raises(UserError, match="this key was revoked, which is for good"):
        add_site(coordinator, "elsewhere", old)
    with pytest.raises(UserError, match="'north' is not known here"):
        revoke_site(coordinator, "north")
    add_site(coordinator, "north", new)
    assert revoked_sites(coordinator) == frozenset()
    rotate_site(coordinator, "north", third)
    assert site_keys(coordinator)["north"].read_bytes() == third.read_bytes() and not revoked_sites(coordinator)
    for key in (old, new, third):
        with pytest.raises(UserError, match="was revoked|is the key of site 'north'"):
            rotate_site(coordinator, "north", key)


def test_what_is_missing_is_named(coordinator: Coordinator) -> None:
    with pytest.raises(UserError, match=r"ca\.pem: there is no such file"):
        prepare(coordinator, Address("127.0.0.1", 8000))


def test_the_secret_is_private_and_kept(coordinator: Coordinator) -> None:
    make_certificates(coordinator.folder / "certs", [])
    prepare(coordinator, Address("0.0.0.0", 8000))
    secret = coordinator.secret.read_bytes()
    assert stat.S_IMODE(coordinator.secret.stat().st_mode) == 0o600 and len(secret) == 32
    prepare(coordinator, Address("0.0.0.0", 8001))
    assert coordinator.secret.read_bytes() == secret
    settings = tomllib.loads((coordinator.flower / "config.toml").read_text())["superlink"]
    assert settings[CONNECTION]["address"] == "127.0.0.1:8001"


def test_the_superlink_is_started_with_every_guard(coordinator: Coordinator) -> None:
    """Each of these switches off something that is open by default in Flower 1.41."""
    line = Serving(coordinator, Address("127.0.0.1", 8000)).superlink_command()
    assert "--insecure" not in line
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(line)
    assert line[line.index("--isolation") + 1] == "process"
    assert line[line.index("--superexec-auth-secret-file") + 1] == str(coordinator.secret)


def test_the_bulk_channel_listens_where_the_coordinator_does(coordinator: Coordinator) -> None:
    address = Address("127.0.0.1", 8000)
    coordinator.folder.mkdir(exist_ok=True)
    assert Serving(coordinator, address).bulk is None
    write_bulk_settings(coordinator, BulkSettings(port=8001, mb_per_s=2.5))
    line = Serving(coordinator, address).bulk_command()
    assert line[2:] == ["server.bulk_service", str(coordinator.folder), "--host", "127.0.0.1", "--port", "8001",
                        "--mb-per-s", "2.5"]  # fmt: skip
    write_bulk_settings(coordinator, None)
    assert Serving(coordinator, address).bulk is None


def test_nobody_there_is_said(coordinator: Coordinator) -> None:
    make_certificates(coordinator.folder / "certs", [])
    prepare(coordinator, Address("127.0.0.1", free_port()))
    with pytest.raises(UserError, match="`flwr supernode list` was refused"):
        flower(coordinator, "supernode", "list", CONNECTION)
    with pytest.raises(UserError, match="The SuperLink does not answer") as told:
        site_states(coordinator)
    assert "wardround serve" in told.value.remedy


def test_a_folder_that_was_never_served_is_said(coordinator: Coordinator) -> None:
    with pytest.raises(UserError, match="no coordinator has run here"):
        site_states(coordinator)


def test_mistakes_at_the_command_line_end_with_2(tmp_path: Path) -> None:
    for arguments in (("serve", "nowhere"), ("sites", "add", "c", "north", "absent.pub"), ("run",)):
        done = call(main, *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr


def test_a_mistake_at_the_installed_command_ends_with_2(tmp_path: Path) -> None:
    line = [str(Path(sys.executable).parent / "wardround"), "serve", "nowhere"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr
