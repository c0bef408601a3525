"""A site's steps on their way to the coordinator's log: over TLS, signed, counts alone."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from flwr.app import Context, RecordDict

from client import heartbeat
from client.heartbeat import Heartbeat, send
from client.policy import Policy
from client.progress import Progress
from client.site import BulkEnd, Settings, Site
from common.address import Address, free_port
from common.bulk.beat import METHOD, Beat
from common.bulk.opening import SERVICE, options
from common.keys import make_site_key
from common.registry.config import read_registry_config
from common.study import Study
from server import bulk_service, heartbeats
from server.app import app as server_app
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site
from server.run_folder import EventLog, read_events
from server.simulation import InProcessGrid, load_client_app, site_contexts

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Callable[[str], BulkEnd]]]:
    """A coordinator whose service listens and knows site `a`, and how whoever has a key reaches it."""
    folder = tmp_path_factory.mktemp("heartbeats")
    coordinator, port = Coordinator(folder / "coordinator"), free_port()
    make_certificates(coordinator.folder / "certs", ["localhost"])
    for name in ("a", "stranger"):
        make_site_key(folder / name)
    add_site(coordinator, "a", folder / "a" / "site.pub")
    server = bulk_service.start(coordinator, Address("127.0.0.1", port))
    address, ca = Address("localhost", port), coordinator.certificates.ca
    yield coordinator, lambda name: BulkEnd(address, ca, folder / name / "site.key")
    server.stop(None).wait()


def beat(step: int = 3, site: str = "a") -> Beat:
    return Beat(site=site, study="5" * 64, run="a-run", round=2, step=step, steps=15)


def progress(step: int) -> Progress:
    return Progress("5" * 64, "a-run", 2, step, 15, time.time())


def site_in(folder: Path, policy: Policy) -> Site:
    path = folder / "a.toml"
    path.write_text(f'extends = "{REGISTRY}"\nsite = "a"\n[synthetic]\npatients = 40\nseed = 1\n')
    study = folder / "state" / "studies" / ("5" * 64)
    (study / "runs" / "a-run").mkdir(parents=True)
    (study / "study.json").write_text(json.dumps({"study": {"rounds": {"rounds": 2, "local_steps": 15}}}))
    return Site(read_registry_config(path), Settings(policy=policy), folder / "state")


def test_a_beat_becomes_a_line_of_the_log(
    ends: tuple[Coordinator, Callable[[str], BulkEnd]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, end = ends
    monkeypatch.setattr(heartbeats, "LOOK_S", 0.02)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.0)
    site = site_in(tmp_path, Policy(approve_all=True))
    telling = Heartbeat(site, end("a"))
    log = EventLog(tmp_path / "events.jsonl", arm="federated", seed=1)
    with heartbeats.listening(coordinator.progress, "a-run", log):
        for step in (1, 2):
            telling.tell(progress(step))
            told = time.monotonic() + 10
            while len(list(read_events(log.path))) < step and time.monotonic() < told:
                time.sleep(0.02)
    events = [(e["event"], e["site"], e["round"], e["step"], e["steps"]) for e in read_events(log.path)]
    assert events == [("site_progress", "a", 2, 1, 15), ("site_progress", "a", 2, 2, 15)]
    logged = [json.loads(line) for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["round"], line["detail"]) for line in logged] == [
        ("Progress", 2, "step 1 of 15"), ("Progress", 2, "step 2 of 15"),
    ]  # fmt: skip


def test_a_site_whose_policy_is_silence_says_nothing(
    ends: tuple[Coordinator, Callable[[str], BulkEnd]], tmp_path: Path
) -> None:
    site = site_in(tmp_path, Policy(tell_progress=False))
    Heartbeat(site, ends[1]("a")).tell(progress(9))
    assert not (site.state / "audit.jsonl").exists()
    assert not any(json.loads(p.read_text())["step"] == 9 for p in ends[0].progress.glob("*.json"))


def test_only_the_sites_own_key_is_believed(ends: tuple[Coordinator, Callable[[str], BulkEnd]]) -> None:
    coordinator, end = ends
    assert send(end("a"), beat(5))
    assert not send(end("stranger"), beat(6)) and not send(end("a"), beat(7, site="b"))
    kept = json.loads((coordinator.progress / "a.json").read_text())
    assert kept["step"] == 5 and not (coordinator.progress / "b.json").exists()


@pytest.mark.parametrize("changes", [{"step": 16}, {"step": -1}, {"round": 0}, {"run": "../x"}, {"note": "more"}])
def test_what_is_no_beat_is_refused(
    ends: tuple[Coordinator, Callable[[str], BulkEnd]], changes: dict[str, object]
) -> None:
    coordinator, end = ends
    said = json.dumps(beat().model_dump() | changes).encode()
    credentials = grpc.ssl_channel_credentials(coordinator.certificates.ca.read_bytes())
    with grpc.secure_channel(str(end("a").coordinator), credentials, options()) as connection:
        with pytest.raises(grpc.RpcError) as refused:
            list(connection.stream_stream(f"/{SERVICE}/{METHOD}")(iter([said]), timeout=10))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_coordinator_that_does_not_hear_is_tried_less_and_less(
    ends: tuple[Coordinator, Callable[[str], BulkEnd]], tmp_path: Path
) -> None:
    nobody = BulkEnd(Address("localhost", free_port()), ends[0].certificates.ca, ends[1]("a").key)
    telling = Heartbeat(site_in(tmp_path, Policy(approve_all=True)), nobody)
    began = time.monotonic()
    telling.tell(progress(1))
    assert telling.pause == 2 * heartbeat.BEAT_S and time.monotonic() - began < 2 * heartbeat.CALL_S
    telling.tell(progress(2))
    lines = (telling.site.state / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 1, "the next is not due yet"


def test_a_round_of_the_real_apps_tells_its_steps(
    ends: tuple[Coordinator, Callable[[str], BulkEnd]],
    small_study: Callable[..., Study],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Site and coordinator as Flower would call them, told of the channel as `join --bulk` and `run` tell them."""
    coordinator, end = ends
    monkeypatch.setattr(heartbeats, "LOOK_S", 0.02)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.0)
    study = small_study(sites={"train": ["a"]}, rounds={"rounds": 1, "local_steps": 3, "validation_patients": 12})
    (tmp_path / "study.toml").write_text(study.to_toml())
    contexts = site_contexts(study, tmp_path / "sites")
    for context in contexts.values():
        a = end("a")
        context.node_config |= {"bulk": str(a.coordinator), "ca": str(a.ca), "key": str(a.key)}
    told = {"study": "study.toml", "arm-dir": "arm", "events": "events.jsonl"}
    config = {name: str(tmp_path / file) for name, file in told.items()} | {
        "run": "the-run", "model": str(tiny_model), "coordinator": str(coordinator.folder),
        "played-keys": "",
    }  # fmt: skip
    server_app(InProcessGrid(load_client_app(), contexts), Context(1, 1, {}, RecordDict(), dict(config)))
    events = [e for e in read_events(tmp_path / "events.jsonl") if e["event"] == "site_progress"]
    assert events and {(e["site"], e["round"], e["steps"]) for e in events} == {("a", 1, 3)}
    assert [e["step"] for e in events] == sorted({e["step"] for e in events})
