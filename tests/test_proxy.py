"""nginx with the shipped settings in front of a real bulk service; tests/test_hosts.py has the SuperLink."""

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.superlink.routers.fleet.router import router as fleet_router

from client.bulk import Channel, download, upload
from client.join import Joining
from client.preflight import Finding, preflight
from client.site import read_site
from common.address import Address, free_port
from common.bulk import beat, check
from common.bulk.opening import METHODS, SERVICE, ChannelRefused, Transfer
from common.bulk.pace import Pace
from common.keys import make_site_key, read_private_key
from common.transfer.manifest import manifest_of
from server import bulk_service
from server.bulk_spool import Spool
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site
from tests.proxy import SETTINGS, Caller, needs_nginx, start_proxy

SITE = Path(__file__).parent.parent / "site_configs" / "synthetic" / "synthetic-north.toml"
SELF_REGISTRATION = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
"""For nodes without a key, which a coordinator does not take."""


def locations() -> list[str]:
    return re.findall(r"^ +location (?:~ )?(\S+) {$", SETTINGS.read_text(), re.MULTILINE)


def test_what_is_let_through_is_what_a_sites_node_calls_and_the_bulk_channel() -> None:
    rest, fleet, bulk = locations()
    assert rest == "/"
    routes = {route.path for route in fleet_router.routes}
    assert {path for path in routes if re.match(fleet, path)} == routes - SELF_REGISTRATION
    assert all(re.match(bulk, f"/{SERVICE}/{name}") for name in (*METHODS.values(), beat.METHOD, check.METHOD))
    assert all(pattern.startswith("^/") and pattern.endswith("$") for pattern in (fleet, bulk))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Address]]:
    """A coordinator with a bulk service, no SuperLink, one site; and its proxy's address."""
    coordinator = Coordinator(tmp_path_factory.mktemp("coordinator"))
    make_certificates(coordinator.folder / "certs", ["localhost"])
    add_site(coordinator, "north", make_site_key(coordinator.folder / "north")[1])
    make_site_key(coordinator.folder / "stranger")
    bulk, address = free_port(), Address("localhost", free_port())
    service = bulk_service.start(coordinator, Address("127.0.0.1", bulk))
    proxy = start_proxy(coordinator.folder / "proxy", address, coordinator.certificates, free_port(), bulk)
    yield coordinator, address
    proxy.stop()
    service.stop(None).wait()


def channel(place: tuple[Coordinator, Address], owner: str) -> Channel:
    coordinator, address = place
    key = read_private_key(coordinator.folder / owner / "site.key")
    return Channel(address, coordinator.certificates.ca, key, Pace(None))


@needs_nginx
def test_the_bulk_channel_passes_both_ways_bit_for_bit(place: tuple[Coordinator, Address], tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(random.Random(7).randbytes(6_000_000))
    manifest, spool = manifest_of(payload, 2**22), Spool(place[0].bulk)
    values = {"site": "north", "study": "5" * 64, "run": "a-run", "round": 1, "sha256": manifest.sha256}
    up = Transfer.model_validate({**values, "direction": "up"})
    down = up.model_copy(update={"direction": "down"})
    arrived = spool.expect(up, manifest)
    upload(channel(place, "north"), up, payload)
    assert arrived.read_bytes() == payload.read_bytes()
    spool.offer(down, manifest, arrived)
    download(channel(place, "north"), down, manifest, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == payload.read_bytes()
    with pytest.raises(ChannelRefused, match="UNAUTHENTICATED: the site is not known, or the signature"):
        upload(channel(place, "stranger"), up, payload)
    held = [path for path in (place[0].folder / "proxy").rglob("*") if path.is_file()]
    assert {path.name for path in held} == {"nginx.conf", "nginx.pid", "log"}, "the proxy keeps nothing that passes"


@needs_nginx
def test_a_site_looks_through_it_before_it_joins(place: tuple[Coordinator, Address], tmp_path: Path) -> None:
    """Certificate, time, registration and line, with one port for all."""
    coordinator, address = place
    config = tmp_path / "site.toml"
    config.write_text(f'extends = "{SITE}"\nsite = "north"\n')
    key = coordinator.folder / "north" / "site.key"
    joining = Joining(config, tmp_path, address, coordinator.certificates.ca, key, address)
    found = [look for look in preflight(joining, read_site(config, tmp_path), None) if isinstance(look, Finding)]
    told = {finding.what: (finding.mark, finding.said) for finding in found}
    assert {mark for mark, _ in told.values()} == {"ok"}, told
    assert told.keys() == {"key", "certificate", "coordinator", "clock", "registered", "versions", "line"}


@needs_nginx
def test_the_proxy_refuses_by_itself_what_is_not_a_sites_call(place: tuple[Coordinator, Address]) -> None:
    """There is no SuperLink behind it: what were passed on would be answered with 502."""
    coordinator, address = place
    caller = Caller(address, coordinator.certificates.ca)
    assert caller.call("POST", "/v1/fleet/pull-messages") == 502
    assert caller.call("GET", "/v1/fleet/pull-messages") == 403
    assert caller.call("POST", "/v1/fleet/push-object", bytes(17 * 2**20)) in (413, None)
    others = ("/v1/control/start-run", "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
              "/v1/fleet/register-node", "/v1/fleet/pull-messages/", "//v1/runtime/acquire-task", "/docs", "/health",
              "/flwr.proto.Control/StartRun", "/wardround.Bulk/Other")  # fmt: skip
    assert {path: caller.call("POST", path) for path in others} == dict.fromkeys(others, 404)


@needs_nginx
def test_the_log_has_the_call_and_nothing_of_what_it_says(place: tuple[Coordinator, Address]) -> None:
    coordinator, address = place
    Caller(address, coordinator.certificates.ca).call("POST", "/v1/fleet/get-run?patient=Smith", b"aged 61 years")
    line = re.compile(r'^\S+ 127\.0\.0\.1 POST "/v1/fleet/get-run" 502 in=\d+ out=\d+ s=\S+$', re.MULTILINE)
    end = time.monotonic() + 10
    while not line.search(log := (coordinator.folder / "proxy" / "log").read_text()):
        assert time.monotonic() < end, log
        time.sleep(0.05)
    assert "years" not in log
