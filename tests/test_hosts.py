"""A coordinator behind its proxy and two hospitals, each on a host of its own: strangers, and faults of the line.

One hospital has no route to the coordinator, only an HTTP proxy on its way out.
"""

import datetime
import random
import re
import subprocess
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import grpc
import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.routers.runtime import create_runtime_router
from flwr.superlink.routers.control import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router

from benchmarks._consortium import SITES, command, do, done, last_round, running_consortium, simulated
from common.address import Address, free_port
from common.keys import read_private_key
from common.processes import Process
from server.bulk_settings import BulkSettings, write_bulk_settings
from server.coordinator import registered
from server.run_folder import read_events
from server.serve import ASK_S
from tests.hosts import COORDINATOR, GATEWAY, Host, Network, needs_hosts
from tests.http_proxy import HttpProxy
from tests.proxy import Caller, Proxied, needs_nginx, start_nginx
from tests.test_faults import same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_nginx, needs_hosts]

NORTH, SOUTH = SITES
PROBES = 200


class Apart(Proxied):
    """Each site on its own host; the coordinator listens on its host's loopback, its proxy on the bridge."""

    host = COORDINATOR

    def __init__(self, hosts: Mapping[str, Host], ways_out: Mapping[str, HttpProxy], *given: object) -> None:
        """`ways_out`: the HTTP proxies that sites have."""
        super().__init__(*given)
        self.hosts, self.ways_out = hosts, ways_out

    def on_host(self, site: str, line: list[str]) -> list[str]:
        proxy = self.ways_out.get(site)
        named = () if proxy is None else ("env", f"HTTPS_PROXY=http://{proxy.address}")
        return self.hosts[site].line(*named, *line)

    def join(self, site: str) -> Process:
        return self.start(site, *self.on_host(site, self.join_line(site, Path(site) / "site.key")))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Apart]:
    rounds = {"rounds": 1, "local_steps": 2, "validation_patients": 0, "deadline_s": 1200.0}
    values = {**tiny_study, "rounds": rounds, "transfer": {"inline_mb": 0.0}}
    folder, way_out = tmp_path_factory.mktemp("apart"), tmp_path_factory.mktemp("way-out")
    with Network(len(SITES)) as hosts, HttpProxy(Address(GATEWAY, free_port()), way_out) as proxy:
        by_site = dict(zip(SITES, hosts, strict=True))
        by_site[NORTH].wall_off()
        by_site[SOUTH].slow(2.0)
        with running_consortium(folder, values, tiny_model, kind=partial(Apart, by_site, {NORTH: proxy})) as made:
            write_bulk_settings(made.coordinator, BulkSettings(port=made.bulk_port, above_mb=0.0))
            yield made


def test_a_host_reaches_the_proxies_and_nothing_else_of_the_coordinator(apart: Apart) -> None:
    north, south = apart.hosts[NORTH], apart.hosts[SOUTH]
    assert south.reaches(COORDINATOR, apart.proxy.port)
    assert not north.reaches(COORDINATOR, apart.proxy.port)
    assert north.reaches(GATEWAY, apart.ways_out[NORTH].address.port)
    for host in (north, south):
        assert not any(host.reaches(COORDINATOR, port) for port in (apart.port, apart.bulk_port))


def test_the_pre_flight_of_a_site_behind_an_http_proxy(apart: Apart) -> None:
    """Both of its protocols: HTTPS to the SuperLink, gRPC to the bulk channel."""
    line = command("wardround-site", "check", f"sites/{NORTH}.toml", "--connect", apart.proxy, "--bulk", apart.proxy,
                   "--ca", "coordinator/certs/ca.pem", "--key", f"{NORTH}/site.key", "--state", f"{NORTH}/state")
    called = subprocess.run(apart.on_host(NORTH, line), cwd=apart.folder, capture_output=True, text=True, timeout=300,
                            check=False)  # fmt: skip
    assert called.returncode == 0, called.stdout + called.stderr
    assert f"through the proxy {apart.ways_out[NORTH].address}" in called.stdout
    assert apart.ways_out[NORTH].let_through() == {str(apart.proxy)}


def hostile_calls(chance: random.Random, inner: list[str], fleet: list[str]) -> Iterator[bytes]:
    """Whole requests: the coordinator's own paths in many spellings, a site's calls with nonsense, no HTTP at all."""
    spellings = (
        "{0}", "/{0}", "/v1/fleet/..{1}", "/v1/fleet/%2e%2e{1}", "/v1/fleet/get-run/../..{1}", "/x/..{0}", "{0}%00",
        "{0};/v1/fleet/get-run", "{0}?/v1/fleet/get-run", "{0}#/v1/fleet/get-run", "https://localhost{0}", "/v1%2f{2}",
    )  # fmt: skip
    for number in range(PROBES):
        path, method = chance.choice(inner), chance.choice(("GET", "POST", "PUT", "HEAD", "TRACE", "X" * 50))
        body = chance.randbytes(chance.choice((0, 1, 100, 70_000)))
        headers = f"Host: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        match number % 5:
            case 0 | 1:
                spelled = chance.choice(spellings).format(path, path.removeprefix("/v1"), path.removeprefix("/v1/"))
                yield f"{method} {spelled} HTTP/1.1\r\n{headers}\r\n".encode() + body
            case 2:
                typed = f"{headers}Content-Type: {PROTOBUF_MEDIA_TYPE}\r\n"
                yield f"POST {chance.choice(fleet)} HTTP/1.1\r\n{typed}\r\n".encode() + body
            case 3:
                large = chance.choice((f"X: {'y' * 40_000}\r\n", "Content-Length: 99999999999\r\n",
                                       "Content-Length: -1\r\n", "Transfer-Encoding: x\r\n"))  # fmt: skip
                yield f"POST {chance.choice(fleet)} HTTP/1.1\r\nHost: localhost\r\n{large}\r\n".encode()
            case 4:
                yield chance.randbytes(chance.randint(1, 5000)) + b"\r\n\r\n"


def paths(router: APIRouter) -> list[str]:
    return [context.path for context in iter_route_contexts(router.routes)]


def test_a_hostile_client_reaches_nothing_and_the_coordinator_stays_well(apart: Apart) -> None:
    inner = paths(control_router) + paths(create_runtime_router("SuperLink"))
    assert {"/v1/control/start-run", "/v1/runtime/acquire-task"} <= set(inner)
    log = apart.coordinator.logs / "superlink.log"
    before, superlink = log.stat().st_size, apart.at_coordinator("flower-superlink")
    memory, began = superlink.memory_info().rss, time.monotonic()

    caller = Caller(apart.proxy, apart.coordinator.certificates.ca)
    assert {path: caller.call("POST", path) for path in inner} == dict.fromkeys(inner, 404)
    statuses = [caller.say(said) for said in hostile_calls(random.Random(7), inner, paths(fleet_router))]
    assert all(status in (None, 501) or 400 <= status < 500 for status in statuses), statuses
    credentials = grpc.ssl_channel_credentials(apart.coordinator.certificates.ca.read_bytes())
    with grpc.secure_channel(str(apart.proxy), credentials) as connection:
        for method, code in (("/flwr.proto.Control/StartRun", grpc.StatusCode.UNIMPLEMENTED),
                             ("/wardround.Bulk/Upload", grpc.StatusCode.INVALID_ARGUMENT)):  # fmt: skip
            with pytest.raises(grpc.RpcError) as refused:
                list(connection.stream_stream(method)(iter([b"{}"])))
            assert refused.value.code() == code

    with log.open("rb") as new:
        new.seek(before)
        heard = Counter(re.findall(rb"(?:GET|POST|PUT|HEAD) (\S+) HTTP", new.read()))
    looks = heard.pop(b"/v1/control/list-nodes", 0)
    assert looks <= (time.monotonic() - began) / ASK_S + 1, "more than `serve` itself asks on this machine"
    assert b"/v1/fleet/get-run" in heard, "a site's call with nonsense is for the SuperLink to refuse"
    assert not [path for path in heard if not path.startswith((b"/v1/fleet/", b"/v1/runtime/"))], heard
    assert superlink.is_running() and superlink.memory_info().rss < memory + 100e6
    apart.wait_online(60.0)


def heartbeat(apart: Apart, site: str, ahead_s: float) -> int | None:
    """What a site's node says every half minute, by a clock that is so far before the coordinator's."""
    key = read_private_key(apart.folder / site / "site.key")
    node = Node(node_id=int(registered(apart.coordinator)[site]["node"]))
    body = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30).SerializeToString()
    stamp = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)).isoformat()
    signed = {
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
    }
    caller = Caller(apart.proxy, apart.coordinator.certificates.ca)
    return caller.call("POST", "/v1/fleet/send-node-heartbeat", body, **signed)


@pytest.mark.parametrize("ahead_s, status", [(0, 200), (-200, 200), (60, 401), (-400, 401)])
def test_a_sites_signature_passes_and_counts_for_five_minutes(apart: Apart, ahead_s: float, status: int) -> None:
    assert heartbeat(apart, NORTH, ahead_s) == status


def test_a_site_whose_signature_is_refused_is_told_of_its_clock(apart: Apart, tmp_path: Path) -> None:
    """One process cannot have another clock, so an nginx answers as the SuperLink does above."""
    address, certificates = Address("localhost", free_port()), apart.coordinator.certificates
    settings = tmp_path / "nginx.conf"
    settings.write_text(
        "daemon off; pid nginx.pid; error_log stderr; events {} http { access_log off; "
        f"server {{ listen {address} ssl; ssl_certificate {certificates.server}; "
        f"ssl_certificate_key {certificates.server_key}; location / {{ return 401; }} }} }}"
    )
    with start_nginx(settings, address, certificates.ca):
        given = ("--coordinator", address, "--ca", certificates.ca, "--key", f"{NORTH}/site.key", "--attempts", 1,
                 "--state", tmp_path)  # fmt: skip
        told = do("wardround-site", "join", f"sites/{NORTH}.toml", *given, folder=apart.folder)
    assert told.returncode == 2 and "could not join: the node ended by itself" in told.stderr, told.stderr


def test_a_run_through_the_proxy_over_a_line_that_drops_is_the_simulations(apart: Apart, tmp_path: Path) -> None:
    """One site's payloads go by the bulk channel, through an HTTP proxy; the other's in shards by Flower's messages,
    over a slow line."""
    line = ("run", apart.study, "--coordinator", "coordinator", "--model", apart.model)
    done("wardround", *line, folder=apart.folder)
    (run,) = (apart.folder / "runs").iterdir()
    events = list(read_events(run / "events.jsonl"))
    assert {event["site"] for event in events if event["event"] == "bulk_received"} == {NORTH}
    assert {event["site"] for event in events if event["event"] == "bulk_unavailable"} == {SOUTH}
    assert apart.hosts[SOUTH].dropped() > 0
    assert same(last_round(run / "seed-1" / "federated"), simulated(apart, tmp_path, apart.study))
