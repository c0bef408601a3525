"""Faults amid a run over a real SuperLink and real nodes: the model is the simulation's, bit for bit.

Updates and models travel in Flower's messages, or by the bulk channel. Replies that are lost, repeated or damaged one
by one are played in tests/server/test_transfer.py.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks._consortium import SITES, do, running_consortium, simulated
from benchmarks._faults import LONGEST_S, Run, Wired, same, size, until
from benchmarks._relay import Fault
from server.bulk_settings import read_bulk_settings, write_bulk_settings
from server.round_store import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NORTH, SOUTH = SITES
SHARD_BYTES = 100_000
DEADLINE_S = 150.0
BULK_MB_PER_S = 0.06
"""So that a model of some 170 kB takes seconds by the bulk channel, and there is time to kill somebody."""


class Slowed(Wired):
    bulk_options = ("--bulk-mb-per-s", BULK_MB_PER_S)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Wired]:
    rounds = {"rounds": 2, "local_steps": 60, "validation_patients": 0, "deadline_s": 2 * LONGEST_S}
    values = {**tiny_study, "rounds": rounds, "transfer": {"shard_mb": SHARD_BYTES / 1e6, "inline_mb": 0.0}}
    with running_consortium(tmp_path_factory.mktemp("faults"), values, tiny_model, kind=Slowed) as made:
        yield made


@pytest.fixture(scope="module")
def expected(consortium: Wired, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return simulated(consortium, tmp_path_factory.mktemp("simulated"), consortium.study)


def damaged(data: bytes) -> bytes:
    """What a disk makes of it."""
    return bytes([data[0] ^ 1]) + data[1:]


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
    until(lambda: run.uploading(SOUTH), "an upload of the second round")
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
