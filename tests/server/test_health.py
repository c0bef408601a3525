"""Health by the standard gRPC protocol, over TLS, told from the coordinator's folder."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import Address, free_port
from common.study import Study, parse_study
from server import bulk_service, health
from server.bulk_settings import BulkSettings, write_bulk_settings
from server.certs import make_certificates
from server.cli import main
from server.coordinator import Coordinator, prepare
from server.run_folder import RunFolder, create_run, write_json
from tests.command import call

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Place:
    coordinator: Coordinator
    port: int

    def check(self, service: str) -> int:
        credentials = grpc.ssl_channel_credentials(self.coordinator.certificates.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{self.port}", credentials) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    coordinator = Coordinator(tmp_path / "coordinator")
    make_certificates(coordinator.folder / "certs", ["localhost"])
    port = free_port()
    prepare(coordinator, Address("127.0.0.1", free_port()))
    write_bulk_settings(coordinator, BulkSettings(port=port))
    service = bulk_service.start(coordinator, Address("127.0.0.1", port))
    yield Place(coordinator, port)
    service.stop(None).wait()


@pytest.fixture
def study(tiny_study: dict[str, Any]) -> Study:
    values = {**tiny_study, "sites": {"train": ["north"], "public": ["synthetic-public"]}}
    return parse_study({**values, "rounds": {**values["rounds"], "deadline_s": 60.0}}, "test")


@pytest.fixture
def run(tmp_path: Path, study: Study) -> RunFolder:
    return create_run(tmp_path / "runs", study, [study.seed], ["federated"], time.time())


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def begun_before(place: Place, run: RunFolder, seconds: float) -> None:
    (note,) = place.coordinator.under_way.glob("*.json")
    assert note.stem == run.path.name
    write_json(note, {**health.read_json(note), "since": time.time() - seconds})


def finish(run: RunFolder, number: int, ago: float) -> None:
    done = run.arm(run.study().seed, "federated") / f"round-{number:04d}.json"
    write_json(done, {})
    aged(done, ago)


def test_a_coordinator_without_a_run_serves(place: Place) -> None:
    assert place.check("") == SERVING and place.check(health.ROUNDS) == SERVING


def test_other_names_are_not_known_and_nothing_is_watched(place: Place) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        place.check("wardround.Bulk")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    credentials = grpc.ssl_channel_credentials(place.coordinator.certificates.ca.read_bytes())
    with grpc.secure_channel(f"localhost:{place.port}", credentials) as channel:
        with pytest.raises(grpc.RpcError) as watching:
            list(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert watching.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_rounds_are_late_when_the_last_is_older_than_twice_the_deadline(place: Place, run: RunFolder) -> None:
    with health.leading(place.coordinator, run):
        assert place.check(health.ROUNDS) == SERVING, "a run that has just begun"
        begun_before(place, run, 1000)
        assert place.check(health.ROUNDS) == NOT_SERVING
        assert place.check("") == SERVING, "it answers all the same"
        finish(run, 0, 500)
        finish(run, 1, 121)
        assert place.check(health.ROUNDS) == NOT_SERVING
        finish(run, 2, 110)
        assert place.check(health.ROUNDS) == SERVING
    assert place.check(health.ROUNDS) == SERVING, "the run has ended"


def test_a_limit_of_the_operators_own(place: Place, run: RunFolder) -> None:
    with health.leading(place.coordinator, run):
        finish(run, 1, 30)
        begun_before(place, run, 1000)
        ((late,), (in_time,)) = (
            [found.late for found in health.runs_under_way(place.coordinator, limit)] for limit in (20.0, 40.0)
        )
    assert late and not in_time


def test_a_run_whose_command_was_killed_is_late_until_it_is_resumed(place: Place, run: RunFolder) -> None:
    killed = health.leading(place.coordinator, run)
    killed.__enter__()
    begun_before(place, run, 1000)
    assert place.check(health.ROUNDS) == NOT_SERVING
    with health.leading(place.coordinator, run):
        assert place.check(health.ROUNDS) == SERVING
    assert not list(place.coordinator.under_way.iterdir())


def test_the_command_tells_by_its_exit_code(place: Place, run: RunFolder) -> None:
    healthy = call(main, "health", place.coordinator.folder)
    assert healthy.returncode == 0 and healthy.stdout == "the coordinator answers\nno round is late\n"
    with health.leading(place.coordinator, run):
        begun_before(place, run, 1000)
        late = call(main, "health", place.coordinator.folder)
    assert late.returncode == 1 and "older than its limit" in late.stdout


def test_the_command_says_where_nothing_answers(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path / "coordinator")
    make_certificates(coordinator.folder / "certs", ["localhost"])
    prepare(coordinator, Address("127.0.0.1", free_port()))
    none = call(main, "health", coordinator.folder)
    assert none.returncode == 2 and "there is no bulk channel" in none.stderr
    write_bulk_settings(coordinator, BulkSettings(port=free_port()))
    silent = call(main, "health", coordinator.folder)
    assert silent.returncode == 2 and "nothing answers for health (UNAVAILABLE)" in silent.stderr
