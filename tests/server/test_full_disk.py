"""Disks that fill up amid a run, at a site and at the coordinator: who sees what, and the run goes on to the same bits
once there is room. Real sites in this process; tests/test_site_faults.py has a real node on a full disk."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from client.audit import first_broken
from client.egress import REFUSALS
from client.policy import DISK_FULL
from common.errors import UserError
from common.study import Study
from server.round_store import Checkpoint, RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog, read_events
from server.simulation import COORDINATOR, InProcessGrid, load_client_app, site_contexts
from tests.small_disk import FILLER, fill, make_room, needs_small_disk, small_disk

pytestmark = needs_small_disk

ENOUGH_FOR_LOGS = 60_000
"""And for no optimiser's state of the tiny model."""
MIB = 12


@pytest.fixture
def study(small_study: Callable[..., Study]) -> Study:
    rounds = {"rounds": 2, "local_steps": 2, "validation_patients": 0, "deadline_s": 300.0, "on_missing": "wait"}
    return small_study(rounds=rounds)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", MIB) as made:
        yield made


def go(study: Study, model: Path, arm: Path, sites: Path, grid: type[InProcessGrid] = InProcessGrid) -> Checkpoint:
    importlib.import_module("client.training").in_memory.clear()
    store, log = RoundStore(arm), EventLog(arm / "events.jsonl", arm="federated", seed=1)
    return run_rounds(grid(load_client_app(), site_contexts(study, sites)), study, "run", model, store, log)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.round == b.round and all(torch.equal(a.model[name], value) for name, value in b.model.items())


@pytest.mark.parametrize("leave", [ENOUGH_FOR_LOGS, 0])
def test_a_sites_disk_fills_up_while_it_trains(
    study: Study, tiny_model: Path, disk: Path, tmp_path: Path, leave: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses with a code until there is room, and the run, which waits for it, goes on by itself."""
    monkeypatch.setattr("server.missing.AGAIN_S", 0.1)
    expected = go(study, tiny_model, tmp_path / "whole", tmp_path / "whole-sites")
    told: list[str] = []

    class Full(InProcessGrid):
        def deliver(self, message: Message) -> Message:
            about = message.metadata
            first = (about.message_type, about.group_id, about.dst_node_id) == ("train", "2", COORDINATOR + 1)
            if not first or told:
                return super().deliver(message)
            fill(disk, leave)
            reply = super().deliver(message)
            assert (reply.error.code, reply.error.reason) == (DISK_FULL, REFUSALS[DISK_FULL])
            log = disk / "a" / "errors.log"
            told.append(log.read_text() if log.exists() else "")
            make_room(disk)
            return reply

    arm = tmp_path / "arm"
    assert same(go(study, tiny_model, arm, disk, Full), expected)
    events = list(read_events(arm / "events.jsonl"))
    refused = [(event["site"], event["round"], event["fault"]) for event in events if event["event"] == "site_refused"]
    assert refused == [("a", 2, REFUSALS[DISK_FULL])]
    assert [event["missing"] for event in events if event["event"] == "round_waits"] == [["a"]]
    assert ("No space left on device" in told[0]) == (leave > 0)
    audit = disk / "a" / "audit.jsonl"
    assert first_broken(audit) is None
    kinds = [json.loads(line)["kind"] for line in audit.read_text().splitlines()]
    assert kinds.count("Refused") == (leave > 0) and kinds.count("Trained") == 2
    assert not list(disk.rglob("*.part")), "what did not fit takes no room"


def test_the_coordinators_disk_fills_up_amid_a_round(
    study: Study, tiny_model: Path, disk: Path, tmp_path: Path
) -> None:
    expected = go(study, tiny_model, tmp_path / "whole", tmp_path / "whole-sites")

    class Full(InProcessGrid):
        def deliver(self, message: Message) -> Message:
            reply = super().deliver(message)
            if (message.metadata.message_type, message.metadata.group_id) == ("train", "2"):
                fill(disk)
            return reply

    with pytest.raises(UserError, match="No space left on device"):
        go(study, tiny_model, disk, tmp_path / "sites", Full)
    assert RoundStore(disk).finished() == [0, 1]
    assert not [path for path in disk.rglob("*.part") if path.name != FILLER]
    make_room(disk)
    assert same(go(study, tiny_model, disk, tmp_path / "sites"), expected)
