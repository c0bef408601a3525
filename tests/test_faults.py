"""Faults amid a run over a real SuperLink and real nodes: the model is the simulation's, bit for bit.

Updates and models travel in Flower's messages, or by the bulk channel. Replies that are lost, repeated or damaged one
by one are played in tests/server/test_transfer.py.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks._consortium import SITES, Consortium, command, do, last_round, running_consortium, simulated
from benchmarks._relay import Fault, Relay
from common.processes import Process
from server.bulk_settings import read_bulk_settings, write_bulk_settings
from server.round_store import Checkpoint
from server.run_folder import read_events, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NORTH, SOUTH = SITES
SHARD_BYTES = 100_000
DEADLINE_S = 150.0
BULK_MB_PER_S = 0.06
"""So that a model of some 170 kB takes seconds by the bulk channel, and there is time to kill somebody."""
LONGEST_S = 600.0
"""Flower takes up to a minute to report a killed process, and as long to let a killed node in again; on a loaded
machine each message takes half a minute more."""


class Wired(Consortium):
    """Sites dial in through relays, which take connections for a coordinator that is away too."""

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...]) -> None:
        super().__init__(folder, study, model, sites)
        self.wire, self.bulk_wire = Relay(self.port), Relay(self.bulk_port)

    def serve(self) -> Process:
        given = ("--port", self.port, "--bulk-port", self.bulk_port, "--bulk-mb-per-s", BULK_MB_PER_S)
        return self.start("serve", *command("wardround", "serve", "coordinator", *given))

    def addresses(self, site: str) -> tuple[object, ...]:
        return "--coordinator", f"{self.host}:{self.wire.port}", "--bulk", f"{self.host}:{self.bulk_wire.port}"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Wired]:
    rounds = {"rounds": 2, "local_steps": 30, "validation_patients": 0, "deadline_s": 2 * LONGEST_S}
    values = {**tiny_study, "rounds": rounds, "transfer": {"shard_mb": SHARD_BYTES / 1e6, "inline_mb": 0.0}}
    with running_consortium(tmp_path_factory.mktemp("faults"), values, tiny_model, kind=Wired) as made:
        yield made


@pytest.fixture(scope="module")
def expected(consortium: Wired, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return simulated(consortium, tmp_path_factory.mktemp("simulated"), consortium.study)


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONGEST_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:  # it is whole by now, and has its name
        return 0


def damaged(data: bytes) -> bytes:
    """What a disk makes of it."""
    return bytes([data[0] ^ 1]) + data[1:]


class Run:
    """`wardround run` in the background, and what can be seen of it."""

    def __init__(self, consortium: Wired, study: Path | None = None) -> None:
        self.consortium = consortium
        runs = consortium.folder / "runs"
        before = set(runs.glob("*/run.json"))
        self.process = self.start("run", study or consortium.study, "--model", consortium.model)
        until(lambda: set(runs.glob("*/run.json")) - before, "the run's folder")
        (made,) = set(runs.glob("*/run.json")) - before
        self.folder = made.parent
        self.arm = self.folder / "seed-1" / "federated"

    def start(self, *arguments: object) -> Process:
        return self.consortium.start("run", *command("wardround", *arguments, "--coordinator", "coordinator"))

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["event"] in names]

    def shard_came(self, site: str, number: int) -> bool:
        """Whether some of a site's update lies here, and not all of it."""
        parts = (self.arm / f"received-{number:04d}").glob(f".{site}-*.part")
        return any(size(part) for part in parts)

    def site_files(self, site: str, name: str) -> list[Path]:
        """A file of the run's folder at a site, if it is there."""
        return list((self.consortium.folder / site / "state").glob(f"studies/*/runs/{self.folder.name}/{name}"))

    def training(self, site: str, number: int) -> bool:
        """Whether a site has taken a step of a round, and not its last."""
        noted = [read_json(path) for path in self.site_files(site, "progress.json")]
        return any(note["round"] == number and note["step"] < note["steps"] for note in noted)

    def trained(self, site: str, number: int) -> bool:
        """Whether the site's answer for a round lies on its disk."""
        return any(read_json(path)["asked"]["round"] == number for path in self.site_files(site, "last.json"))

    def end(self) -> Checkpoint:
        until(lambda: not self.process.running, "the run's end")
        assert self.process.wait(0) == 0, self.process.log.read_text()
        return last_round(self.arm)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.round == b.round and all(torch.equal(a.model[name], value) for name, value in b.model.items())


def test_sites_that_die_while_they_train_between_shards_and_while_they_answer(
    consortium: Wired, expected: Checkpoint
) -> None:
    run = Run(consortium)
    until(lambda: run.training(NORTH, 1), "a step at the first site")
    consortium.at_site(NORTH, "flwr-clientapp").kill()
    until(lambda: run.shard_came(SOUTH, 1), "a shard of the second site's update")
    consortium.at_site(SOUTH, "flower-supernode").kill()

    until(lambda: run.training(NORTH, 2), "a step of the second round")
    node = consortium.at_site(NORTH, "flower-supernode")
    node.suspend()  # so that the answer is made and does not leave
    until(lambda: run.trained(NORTH, 2), "the answer on the first site's disk")
    node.kill()
    (steps,) = run.site_files(NORTH, "steps-0002.json")
    computed = steps.stat().st_mtime_ns

    assert same(run.end(), expected)
    again = {(event["site"], event["round"], event["kind"]) for event in run.events("asked_again")}
    # A message that had not reached the node when it died waits for the next one, and nobody asks again.
    assert (NORTH, 1, "train") in again
    for site in SITES:
        consortium.wait_for("the node ended", site)
    assert steps.stat().st_mtime_ns == computed, "an answer that lay on the disk was computed again"
    consortium.wait_online()


def test_a_command_that_dies_and_a_coordinator_that_dies_between_shards(
    consortium: Wired, expected: Checkpoint
) -> None:
    """The command's death leaves the coordinator's app alive: it is stopped before another leads the same rounds. When
    that one dies, its disk changes what of the shards had come."""
    run = Run(consortium)
    until(lambda: run.events("sites_asked"), "the first round")
    second = do("wardround", "run", "--resume", run.folder, folder=consortium.folder)
    assert second.returncode == 2 and "another process is at work on this run" in second.stderr
    first = consortium.at_coordinator("flwr-serverapp")
    run.process.child.kill()
    run.process = run.start("run", "--resume", run.folder)
    until(lambda: run.events("resumed"), "the second app's first round")
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert [event["flower_run"] for event in run.events("stopped")] == [run.events("submitted")[0]["flower_run"]]

    until(lambda: any(run.shard_came(site, 1) for site in SITES), "a shard")
    app = consortium.at_coordinator("flwr-serverapp")
    app.suspend()  # so that nothing is received between the look and the kill
    came = [part for part in (run.arm / "received-0001").glob(".*.payload.*.part") if size(part)]
    assert came
    for part in came:
        part.write_bytes(damaged(part.read_bytes()))
    app.kill()
    offered = [event["site"] for event in run.events("update_offered")]
    until(lambda: not run.process.running, "the run's end")
    assert run.process.wait(0) == 2 and "--resume" in run.process.log.read_text()
    run.process = run.start("run", "--resume", run.folder)
    assert same(run.end(), expected)
    again = [event["site"] for event in run.events("update_offered") if event["round"] == 1]
    assert all(again.count(site) == 1 for site in offered), "who had answered was not asked to train again"
    assert len(run.events("submitted")) == 3 and len(run.events("stopped")) == 1


def test_a_superlink_that_dies_while_sites_train(consortium: Wired, expected: Checkpoint) -> None:
    run = Run(consortium)
    until(lambda: any(run.training(site, 1) for site in SITES), "a step at a site")
    consortium.at_coordinator("flower-superlink").kill()
    assert same(run.end(), expected)
    assert len(run.events("submitted")) == 1, "the run went on by itself"


def after_a_round_without(run: Run, consortium: Wired, study: Path, folder: Path) -> Checkpoint:
    """The simulation's second round from this run's first; its sites, like this run's, have all trained in both."""
    simulated(consortium, folder, study)
    for path in (folder / "arm").glob("round-0002.*"):
        path.unlink()
    for path in run.arm.glob("round-0001.*"):
        shutil.copy(path, folder / "arm")
    return simulated(consortium, folder, study)


def test_a_site_that_misses_the_deadline_and_a_wire_that_loses(consortium: Wired, tmp_path: Path) -> None:
    """A site is held over the first round's deadline, so that its answer comes in the second. There the answer to a
    message with a shard is lost, so that it is sent twice, and a connection is cut amid another."""
    study = consortium.other_study("go-on", rounds={"deadline_s": DEADLINE_S, "quorum": 1})
    run = Run(consortium, study)
    until(lambda: run.training(NORTH, 1), "a step at the first site")
    held = consortium.at_site(NORTH, "flwr-clientapp")
    held.suspend()
    until(lambda: run.events("round_goes_on"), "the first round's end")
    held.resume()

    until(lambda: run.training(SOUTH, 2), "a step of the second round")
    hits = consortium.wire.hits
    for number, fault in enumerate((Fault.ANSWER_LOST, Fault.CUT), start=1):
        consortium.wire.hit(fault, up=True, after=SHARD_BYTES // 2)
        until(lambda number=number: consortium.wire.hits == hits + number, f"{fault} on the wire")

    last = run.end()
    assert [event["missing"] for event in run.events("round_goes_on")] == [[NORTH]]
    refused = [(event["site"], event["round"], event["fault"]) for event in run.events("reply_refused")]
    assert (NORTH, 1, "it came too late") in refused
    first, second = (event["contributions"] for event in run.events("round_finished"))
    assert set(first) == {SOUTH} and first[SOUTH]["weight"] == 1.0 and set(second) == set(SITES)
    assert same(last, after_a_round_without(run, consortium, study, tmp_path))


def test_the_bulk_channel_through_the_same_faults(consortium: Wired, expected: Checkpoint) -> None:
    """The service dies amid a download, uploads are damaged and cut on the wire; in the second round a site's app and
    the coordinator's die amid an upload."""
    settings = read_bulk_settings(consortium.coordinator)
    assert settings is not None
    write_bulk_settings(consortium.coordinator, settings.model_copy(update={"above_mb": 0.0}))
    run = Run(consortium)
    until(lambda: run.site_files(NORTH, "inbox/.*.part"), "a download")
    consortium.bulk_service().kill()
    until(lambda: run.training(NORTH, 1), "a step at the first site")
    hits = consortium.bulk_wire.hits
    for number, fault in enumerate((Fault.DAMAGED, Fault.CUT), start=1):
        consortium.bulk_wire.hit(fault, up=True, after=SHARD_BYTES // 2)
        until(lambda number=number: consortium.bulk_wire.hits == hits + number, f"{fault} on the channel's wire")

    until(lambda: run.training(SOUTH, 2), "a step of the second round")
    uploads = consortium.coordinator.bulk / SOUTH
    until(lambda: list(uploads.glob(".up-*.part")), "an upload of the second round")
    consortium.at_site(SOUTH, "flwr-clientapp").kill()
    consortium.at_coordinator("flwr-serverapp").kill()
    until(lambda: not run.process.running, "the run's end")
    run.process = run.start("run", "--resume", run.folder)
    assert same(run.end(), expected)
    write_bulk_settings(consortium.coordinator, settings)

    came = {(event["site"], event["round"]) for event in run.events("bulk_received")}
    assert came == {(site, number) for site in SITES for number in (1, 2)}
    assert {event["site"] for event in run.events("bulk_sent")} == set(SITES)
    assert run.events("bulk_unavailable") == []
    consortium.wait_for("the bulk ended and was started again", "serve")
