"""Updates and models in many shards, over a Grid that loses, repeats and damages messages, and a coordinator that dies.

The model is that of the run without faults, bit for bit, and nobody trains or sends what is there already.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict

from common.study import Study
from common.transfer.records import shard_in, shard_record
from common.update.tensors import State
from server.gathering import RoundFailed
from server.round_store import Checkpoint
from server.simulation import InProcessGrid
from tests.server.adding import SITES, Adding, Run, answered, same

MODEL: State = {"w": torch.arange(-200, 200) / 128, "v": torch.tensor([[2.0]])}
SHARDS = 4
REPLY_LOST = 4
"""Flower's REPLY_MESSAGE_UNAVAILABLE."""

Reply = Callable[[Message], list[Message]]


class Wire(InProcessGrid):
    """A Grid that hands every reply to `fault`, which says what arrives of it."""

    def __init__(self, run: Run, fault: Reply = lambda reply: [reply]) -> None:
        contexts = {n + 2: Context(1, n + 2, {"name": name}, RecordDict(), {}) for n, name in enumerate(SITES)}
        super().__init__(run.sites.app(), contexts)
        self.fault = fault
        self.delivered: Counter[str] = Counter()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        out = []
        for reply in super().pull_messages(message_ids):
            self.delivered[reply.metadata.message_type] += 1
            out += self.fault(reply)
        return out


class Once:
    """A fault in the n-th reply of a kind, and in no other."""

    def __init__(self, kind: str, number: int, fault: Reply) -> None:
        self.kind, self.left, self.fault = kind, number, fault

    def __call__(self, reply: Message) -> list[Message]:
        if reply.metadata.message_type == self.kind:
            self.left -= 1
            if self.left == 0:
                return self.fault(reply)
        return [reply]


@pytest.fixture
def study(small_study: Callable[..., Study]) -> Study:
    rounds = {"rounds": 2, "local_steps": 2, "deadline_s": 120.0, "validation_patients": 12}
    return small_study(sites={"train": list(SITES)}, rounds=rounds, transfer={"shard_mb": 5e-4, "inline_mb": 0.0})


@pytest.fixture
def run(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("server.conversation.FIRST_PAUSE_S", 0.01)
    made = Run(study, tmp_path, Adding(study, tmp_path / "sites", []))
    made.store.save(Checkpoint(0, 0, MODEL, {}, {"baseline": {}}))
    return made


@pytest.fixture(scope="module")
def expected() -> State:
    """Two rounds of means: the sites add 1, 2 and 3."""
    return {name: tensor + 4.0 for name, tensor in MODEL.items()}


def test_models_and_updates_travel_in_shards(run: Run, expected: State) -> None:
    grid = Wire(run)
    assert same(run.go(grid), expected)
    assert {event["shards"] for event in run.events("update_offered")} == {SHARDS}
    assert grid.delivered["query.shard"] == 2 * 3 * SHARDS
    sent = [(event["site"], event["round"], event["how"]) for event in run.events("model_sent")]
    assert sent == [(site, *what) for what in ((1, "whole"), (1, "difference"), (2, "difference")) for site in SITES]
    whole, difference = (run.events("model_sent")[n]["bytes"] for n in (0, 3))
    assert difference < whole
    down = [event["bytes_down"] for event in run.events("round_finished")]
    assert down == [3 * (whole + difference), 3 * run.events("model_sent")[-1]["bytes"]]
    for site in SITES:
        assert list(run.sites.outbox(site).folder.glob("*")) == [], "the end of the run was acknowledged"


def reported_lost(reply: Message) -> list[Message]:
    error = Message(Error(REPLY_LOST, "the reply is gone"), reply_to=answered(reply))
    return [error]


@pytest.mark.parametrize(
    ("kind", "number"), [("train", 2), ("query.shard", 1), ("query.shard", 7), ("query.model", 2), ("evaluate", 3)]
)
def test_a_reply_that_flower_lost_is_asked_for_again(run: Run, expected: State, kind: str, number: int) -> None:
    assert same(run.go(Wire(run, Once(kind, number, reported_lost))), expected)
    assert [(event["kind"], event["fault"]) for event in run.events("asked_again")] == [(kind, "the reply is gone")]


@pytest.mark.parametrize("kind", ["query.shard", "query.model"])
def test_a_reply_that_never_comes_is_asked_for_again(
    run: Run, expected: State, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gathering", "delivery"):
        monkeypatch.setattr(f"server.{module}.PATIENCE_S", 2.0)
    assert same(run.go(Wire(run, Once(kind, 3, lambda _: []))), expected)
    asked = {(event["kind"], event["fault"]) for event in run.events("asked_again")}
    assert (kind, "no answer in time") in asked


def test_messages_that_are_delivered_twice_count_once(run: Run, expected: State) -> None:
    class Twice(Wire):
        def deliver(self, message: Message) -> Message:
            super().deliver(message)
            return super().deliver(message)

    assert same(run.go(Twice(run, lambda reply: [reply, reply])), expected)
    assert {event["fault"] for event in run.events("reply_refused")} == {"it answered twice"}


def damaged(reply: Message) -> list[Message]:
    reply.content["shard"] = shard_record(shard_in(reply.content)[:-1] + b"~")
    return [reply]


def short(reply: Message) -> list[Message]:
    reply.content["shard"] = shard_record(b"")
    return [reply]


@pytest.mark.parametrize("fault", [damaged, short])
def test_a_shard_with_other_bytes_is_asked_for_again(run: Run, expected: State, fault: Reply) -> None:
    grid = Wire(run, Once("query.shard", 4, fault))
    assert same(run.go(grid), expected)
    assert grid.delivered["query.shard"] == 2 * 3 * SHARDS + 1


def test_an_update_that_a_sites_disk_damages_is_made_again(run: Run, expected: State) -> None:
    def damage(reply: Message) -> list[Message]:
        for path in run.sites.outbox("b").folder.glob("*.payload"):
            path.write_bytes(path.read_bytes()[:-1] + b"~")
        return [reply]

    assert same(run.go(Wire(run, Once("query.shard", 2, damage))), expected)
    assert run.sites.trained.count(("b", 1)) == 2 and len(run.sites.trained) == 7
    assert [event["site"] for event in run.events("update_offered") if event["round"] == 1].count("b") == 2
    assert run.events("site_refused") == []


def test_a_site_whose_shards_are_never_right_is_refused_and_can_be_asked_again(run: Run, expected: State) -> None:
    def wrong(reply: Message) -> list[Message]:
        hit = reply.metadata.message_type == "query.shard" and reply.metadata.src_node_id == 3
        return damaged(reply) if hit else [reply]

    with pytest.raises(RoundFailed, match="none from b"):
        run.go(Wire(run, wrong))
    assert [(e["site"], e["fault"]) for e in run.events("update_refused")] == [
        ("b", "the bytes of shard 0 are not those of the manifest")
    ]
    assert same(run.go(Wire(run)), expected)


def test_a_site_that_lost_its_folder_gets_the_whole_model(run: Run, expected: State) -> None:
    def lose(reply: Message) -> list[Message]:
        shutil.rmtree(run.sites.folder / "b")
        return [reply]

    assert same(run.go(Wire(run, Once("evaluate", 3, lose))), expected)
    sent = [(event["site"], event["how"]) for event in run.events("model_sent") if event["round"] == 2]
    assert sent == [("b", "whole"), *((site, "difference") for site in SITES)]


class Killed(BaseException):
    """The coordinator's process ends: nothing catches it."""


@pytest.mark.parametrize("after", [1, 4, 6, 11, 17, 24, 31, 40, 46, 53])
def test_a_coordinator_that_dies_goes_on_from_the_shards_it_has(run: Run, expected: State, after: int) -> None:
    """It dies with so many replies received, the last of them not looked at."""
    left = [after]

    def die(reply: Message) -> list[Message]:
        if reply.metadata.message_type not in ("query.describe", "query.configure"):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        return [reply]

    first, second = Wire(run, die), Wire(run)
    with pytest.raises(Killed):
        run.go(first)
    assert same(run.go(second), expected)
    assert first.delivered["query.shard"] + second.delivered["query.shard"] <= 2 * 3 * SHARDS + 1
    assert first.delivered["train"] + second.delivered["train"] <= 2 * 3 + 1
