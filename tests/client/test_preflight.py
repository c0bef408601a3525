"""`wardround-site check --connect` against a coordinator's real bulk service and a TLS server in the SuperLink's place,
which alone of it says the time."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from client import dry_step, preflight
from client.cli import main
from client.dry_step import machine
from client.greeting import Line
from client.join import Joining, certificates
from client.preflight import Finding, clock_skew
from client.refused import why
from client.site import Site, read_site
from common.address import Address, free_port
from common.certificates import validity_in
from common.keys import make_site_key
from common.study import Study, parse_study
from server import bulk_service
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site, revoke_site
from tests.command import Done, call

SHIPPED = Path(__file__).parents[2] / "site_configs" / "synthetic"


class Clock(BaseHTTPRequestHandler):
    """Says what time it is, `ahead` seconds from now."""

    ahead = 0.0

    def do_HEAD(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Ends:
    coordinator: Coordinator
    joining: Joining
    site: Site


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator")
    make_certificates(folder / "certs", [])
    return folder


@pytest.fixture
def ends(certs: Path, tmp_path: Path) -> Iterator[Ends]:
    coordinator = Coordinator(tmp_path / "coordinator")
    coordinator.folder.mkdir()
    (coordinator.folder / "certs").symlink_to(certs / "certs")
    key, public = make_site_key(tmp_path / "keys")
    add_site(coordinator, "synthetic-north", public)
    config = tmp_path / "site.toml"
    config.write_text(f'extends = "{SHIPPED / "synthetic-north.toml"}"\n[synthetic]\npatients = 60\n')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = coordinator.certificates
    context.load_cert_chain(files.server, files.server_key)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Clock)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    bulk = Address("127.0.0.1", free_port())
    service = bulk_service.start(coordinator, bulk)
    state, where = tmp_path / "state", Address("127.0.0.1", http.server_address[1])
    yield Ends(coordinator, Joining(config, state, where, files.ca, key, bulk), read_site(config, state))
    service.stop(None).wait()
    http.shutdown()
    http.server_close()


@pytest.fixture
def study(tiny_study: dict[str, Any]) -> Study:
    small = {"hidden": 16, "layers": 1, "heads": 2}
    values = {**tiny_study, "sites": {"train": ["synthetic-north"], "public": ["synthetic-public"]}}
    return parse_study({**values, "model": {"builtin": small}}, "test")


def found(ends: Ends, study: Study | None = None) -> dict[str, Finding]:
    looks = preflight.preflight(ends.joining, ends.site, study)
    return {look.what: look for look in looks if isinstance(look, Finding)}


def stopping(findings: dict[str, Finding]) -> set[str]:
    return {what for what, finding in findings.items() if finding.stops}


def test_a_site_that_could_take_part(ends: Ends, tmp_path: Path, study: Study) -> None:
    """The whole command, with a dry step of a built-in model."""
    run: Callable[..., Done] = partial(call, main, cwd=tmp_path)
    (tmp_path / "study.toml").write_text(study.to_toml())
    joining = ends.joining
    line = ("check", joining.config, "--study", "study.toml", "--state", joining.state)
    wanted = ("--connect", joining.coordinator, "--bulk", joining.bulk, "--ca", joining.ca, "--key", joining.key)
    done = run(*line, *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout[done.stdout.index("ok    key") :]
    assert "A round could work here." in told and "FAIL" not in told
    for what in ("certificate", "coordinator", "clock", "registered", "versions", "line", "disk", "dry step", "round"):
        assert f"ok    {what} " in told, told
    assert "look  study" in told, "a study that is not approved is for the site to decide on"
    assert not (joining.state / dry_step.FOLDER).exists()
    entry = json.loads((joining.state / "audit.jsonl").read_text())
    assert entry["kind"] == "Greeting", "nothing else has left"
    (seen,) = map(json.loads, (ends.coordinator.logs / "bulk.jsonl").read_text().splitlines())
    assert seen["event"] == "site_checked" and seen["versions"]["flwr"]
    assert run(*line, "--connect", joining.coordinator).returncode == 2, "without a key"


def test_a_key_that_is_not_registered_stops(ends: Ends, tmp_path: Path) -> None:
    stranger, _ = make_site_key(tmp_path / "stranger")
    there = found(replace(ends, joining=replace(ends.joining, key=stranger)))
    assert stopping(there) == {"registered"} and "does not know this key" in there["registered"].said
    ends.joining.key.chmod(0o644)
    assert stopping(found(ends)) == {"key"}


def test_nobody_there_and_another_authority_are_told_apart(ends: Ends, tmp_path: Path) -> None:
    closed = replace(ends.joining, coordinator=Address("127.0.0.1", free_port()), bulk=None)
    assert "nobody answers" in found(replace(ends, joining=closed))["coordinator"].said
    other = make_certificates(tmp_path / "other", [])
    there = found(replace(ends, joining=replace(ends.joining, ca=other.ca)))
    assert stopping(there) == {"coordinator", "registered"} and "refused" in there["coordinator"].said


def test_causes_of_one_refusal_are_told_apart(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node ends with one code for all of them."""
    assert "another node with it is connected" in str(why(ends.joining, ends.site))
    revoke_site(ends.coordinator, "synthetic-north")
    assert "not registered as synthetic-north's, or was revoked" in str(why(ends.joining, ends.site))
    assert why(replace(ends.joining, bulk=None), ends.site) is None
    monkeypatch.setattr(Clock, "ahead", -100)
    assert "clock is 100 s ahead" in str(why(ends.joining, ends.site))
    entries = [json.loads(line) for line in (ends.site.state / "audit.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in entries] == ["Greeting"] * 2


@pytest.mark.parametrize(("ahead", "stops"), [(0, False), (-60, True), (60, False), (400, True)])
def test_a_clock_that_the_coordinator_would_refuse_stops(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, ahead: float, stops: bool
) -> None:
    """Flower takes signatures of the last 305 s, and of the next 5."""
    monkeypatch.setattr(Clock, "ahead", ahead)
    skew = clock_skew(ends.joining.coordinator, ends.joining)
    assert skew is not None and abs(skew + ahead) < 2
    there = found(replace(ends, joining=replace(ends.joining, bulk=None)))
    assert ("clock" in stopping(there)) == stops and bool(there["clock"].remedy) == (ahead != 0)


def test_both_certificates_are_watched(ends: Ends) -> None:
    ca, server = certificates(ends.joining)
    assert "the CA in" in ca.what and ca.days > 3000
    assert str(ends.joining.coordinator) in server.what and server.days == 364


@pytest.mark.parametrize(("days", "mark"), [(60, "ok"), (20, "look")])
def test_a_certificate_is_warned_of_in_time(tmp_path: Path, days: int, mark: str) -> None:
    files = make_certificates(tmp_path, [], days)
    assert preflight.of_certificate(validity_in("it", files.server)).mark == mark


def test_other_versions_are_named_and_flowers_own_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    there = preflight.versions()
    same = preflight.of_versions(there)
    assert isinstance(same, str)
    other = preflight.of_versions({**there, "torch": "1.0"})
    assert isinstance(other, Finding) and not other.stops and "(there 1.0)" in other.said
    flower = preflight.of_versions({**there, "flwr": "1.0"})
    assert isinstance(flower, Finding) and flower.stops


def test_a_site_with_another_flower_does_not_join(ends: Ends, tmp_path: Path) -> None:
    """Its version is what its installation's metadata say. Flower's SuperLink lets nodes of any version in."""
    about = tmp_path / "flwr-1.40.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.40.0\n")
    joining = ends.joining
    line = [sys.executable, "-m", "client.cli", "join", joining.config, "--coordinator", joining.coordinator,
            "--bulk", joining.bulk, "--ca", joining.ca, "--key", joining.key, "--state", joining.state]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = subprocess.run([str(part) for part in line], env=environment, capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert told.returncode == 2 and "flwr 1.40.0 (there 1.41.0)" in told.stderr, told.stderr
    seen = list(map(json.loads, (ends.coordinator.logs / "bulk.jsonl").read_text().splitlines()))[-1]
    assert (seen["event"], seen["versions"]["flwr"]) == ("site_checked", "1.40.0")


def of_machine(ends: Ends, study: Study, line: Line | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in machine(ends.site, study, line)}


def test_what_the_machine_cannot_carry_stops(ends: Ends, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_step, "main_memory", lambda: 1_000_000)
    assert stopping(of_machine(ends, study)) == {"memory"}
    monkeypatch.undo()
    broken = ends.site.settings.model_copy(update={"launcher": "{python} -c 1/0 {folder}"})
    job = Site(ends.site.registry, broken, ends.site.state)
    there = of_machine(replace(ends, site=job), study)
    assert stopping(there) == {"dry step"} and "refusal 1011" in there["dry step"].said
    log = there["dry step"].remedy.removeprefix("See ").removesuffix(".")
    assert "ZeroDivisionError" in Path(log).read_text()


def test_a_slow_line_makes_the_round_too_long(study: Study, ends: Ends) -> None:
    late = study.model_copy(update={"rounds": study.rounds.model_copy(update={"deadline_s": 5.0})})
    shape = dry_step.shape_of(late, dry_step.read_config(late, builtin(late, ends.joining.state)))
    fast = dry_step.of_time(late, shape, 1.0, Line({}, 100.0, 100.0), untrained=False)
    assert isinstance(fast, str) and fast.startswith("about 2.0 s")
    slow = dry_step.of_time(late, shape, 1.0, Line({}, shape.up_bytes / 10e6, 100.0), untrained=False)
    assert isinstance(slow, Finding) and slow.stops and slow.said.startswith("about 12.0 s")
    guessed = dry_step.of_time(late, shape, 9.0, None, untrained=True)
    assert isinstance(guessed, Finding) and not guessed.stops


def builtin(study: Study, folder: Path) -> Path:
    dry_step.write_untrained(study, ["Age: 50"], folder)
    return folder
