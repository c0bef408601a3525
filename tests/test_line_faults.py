"""What goes wrong on the line amid one run, each hospital on a host of its own behind the coordinator's proxy.

The link is cut amid a download and amid uploads, for seconds and for longer than Flower's heartbeats, in one direction
and in both; the proxy is told of new settings, and dies. The model is the simulation's, bit for bit.
"""

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks._consortium import SITES, running_consortium, simulated
from common.processes import Process
from server.bulk_settings import BulkSettings, write_bulk_settings
from server.coordinator import site_states
from server.round_store import Checkpoint
from tests.hosts import Network, Way, needs_hosts
from tests.proxy import needs_nginx
from tests.test_faults import Run, same, until
from tests.test_hosts import Apart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_nginx, needs_hosts]

NORTH, SOUTH = SITES
SHORT_S = 5.0
LONG_S = 100.0
"""Flower takes a node for gone 30 to 60 s after its last heartbeat. Ten minutes are played as this."""
SHARD_BYTES = 50_000
SLOW_MBIT = 0.8
"""A model of some 170 kB takes two seconds, so that there is time to cut the line."""


class Slow(Apart):
    """One hospital has the bulk channel, the other Flower's messages alone; both take seconds for a model."""

    def serve(self) -> Process:
        served = super().serve()
        write_bulk_settings(self.coordinator, BulkSettings(port=self.bulk_port, above_mb=0.0))
        return served


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Slow]:
    rounds = {"rounds": 2, "local_steps": 60, "validation_patients": 0, "deadline_s": 1200.0}
    values = {**tiny_study, "rounds": rounds, "transfer": {"shard_mb": SHARD_BYTES / 1e6, "inline_mb": 0.0}}
    with Network(len(SITES)) as hosts:
        by_site = dict(zip(SITES, hosts, strict=True))
        for host in hosts:
            host.slow(SLOW_MBIT)
        folder = tmp_path_factory.mktemp("line")
        with running_consortium(folder, values, tiny_model, kind=partial(Slow, by_site, {})) as made:
            yield made


@pytest.fixture(scope="module")
def expected(apart: Slow, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return simulated(apart, tmp_path_factory.mktemp("simulated"), apart.study)


def test_an_answer_that_the_coordinator_fails_to_take(apart: Slow, expected: Checkpoint) -> None:
    """As where its database is locked: it is not sent again, and nobody would ask before the deadline, which is longer
    than this test waits."""
    run, settings = Run(apart), apart.folder / "proxy" / "nginx.conf"
    shipped = settings.read_text()
    until(lambda: run.training(SOUTH, 1), "a step at a site")
    failing = "location = /v1/fleet/push-messages { return 500; }\n"
    settings.write_text(shipped.replace("location / {", f"{failing} location / {{", 1))
    apart.nginx.child.send_signal(signal.SIGHUP)
    apart.wait_for("the coordinator failed to answer", SOUTH)
    settings.write_text(shipped)
    apart.nginx.child.send_signal(signal.SIGHUP)
    assert same(run.end(), expected)
    assert (SOUTH, 1) in {(event["site"], event["round"]) for event in run.events("asked_again")}
    apart.wait_online()


def test_a_line_that_is_cut_and_a_proxy_that_dies(apart: Slow, expected: Checkpoint) -> None:
    run = Run(apart)
    north, south = apart.hosts[NORTH], apart.hosts[SOUTH]
    until(lambda: run.site_files(NORTH, "inbox/.*.part"), "a download")
    with north.cut(Way.BOTH):
        time.sleep(SHORT_S)
    until(lambda: run.shard_came(SOUTH, 1) or run.uploading(NORTH), "an upload")
    if not run.shard_came(SOUTH, 1):
        with north.cut(Way.UP):
            time.sleep(SHORT_S)
        until(lambda: run.shard_came(SOUTH, 1), "a shard of the second site's update")
    with south.cut(Way.DOWN):
        time.sleep(LONG_S)
        assert site_states(apart.coordinator)[SOUTH] == "offline"
        assert "Connection attempt failed, retrying" in apart.node_log(SOUTH)
        assert not run.events("round_finished")
    until(lambda: run.events("round_finished"), "the first round")

    until(lambda: run.training(SOUTH, 2), "a step of the second round")
    apart.nginx.child.send_signal(signal.SIGHUP)
    until(lambda: run.uploading(NORTH) or run.shard_came(SOUTH, 2), "an upload of the second round")
    apart.restart_proxy(SHORT_S)
    assert same(run.end(), expected)

    assert len(run.events("submitted")) == 1, "the run went on by itself"
    weights = [set(event["contributions"]) for event in run.events("round_finished")]
    assert weights == [set(SITES)] * 2
    apart.wait_online()
