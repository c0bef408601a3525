"""Rounds over a real Grid with faults put into it: what arrives wrong is refused by name, and nothing is lost.

The sites here speak the real messages but learn by adding a number, so that every model is known beforehand.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.supernode.start_client_internal import FAB_VERIFICATION_ERROR

from common.errors import UserError
from common.federation import Rounds
from common.study import Study
from common.transfer.records import shard_in, shard_record
from server.gathering import RoundFailed
from server.round_store import Checkpoint
from server.run_folder import EventLog, read_events
from server.sites import name_sites
from tests.server.adding import (
    MODEL,
    SITES,
    Adding,
    Fault,
    FaultyGrid,
    Run,
    answered,
    payload,
    plus,
    reply,
    same,
    update_in,
)


def changed(message: Message, content: RecordDict) -> list[Message]:
    message.content = content
    return [message]


def nan(message: Message) -> list[Message]:
    update = update_in(message)
    update["w"] = torch.full((2,), float("nan")).view(torch.int32) - MODEL["w"].view(torch.int32)
    return changed(message, reply(update, 1))


def other_shape(message: Message) -> list[Message]:
    update = update_in(message)
    return changed(message, reply(update | {"v": torch.zeros(2, 1, dtype=torch.int32)}, 1))


def missing_tensor(message: Message) -> list[Message]:
    update = update_in(message)
    return changed(message, reply({"w": update["w"]}, 1))


def another_round(message: Message) -> list[Message]:
    return changed(message, reply(update_in(message), 7))


def tampered(message: Message) -> list[Message]:
    content = message.content
    content["shard"] = shard_record(shard_in(content)[:-1] + b"x")
    return changed(message, content)


def no_tensors(message: Message) -> list[Message]:
    return changed(message, payload(b"no tensors", 1))


def other_manifest(message: Message) -> list[Message]:
    message.content.config_records["manifest"]["size"] = 7
    return [message]


def endless_weight(message: Message) -> list[Message]:
    update = update_in(message)
    return changed(message, reply(update, 1, patients=float("inf")))


def no_figures(message: Message) -> list[Message]:
    content = message.content
    del content["metrics"]
    return changed(message, content)


def failing(message: Message) -> list[Message]:
    return [Message(Error(1008, "the work failed at this site"), reply_to=answered(message))]


@pytest.fixture
def study(small_study: Callable[..., Study]) -> Study:
    rounds = {"rounds": 2, "local_steps": 2, "deadline_s": 5.0, "validation_patients": 12, "quorum": 2}
    return small_study(sites={"train": list(SITES)}, rounds=rounds)


@pytest.fixture
def run(study: Study, tmp_path: Path) -> Run:
    return Run(study, tmp_path, Adding(study, tmp_path / "sites", []))


def test_without_faults_every_round_is_the_mean(run: Run) -> None:
    assert same(run.go(FaultyGrid(run.sites.app())), plus(4.0))
    assert run.sites.trained == [(s, r) for r in (1, 2) for s in SITES]
    finished = run.events("round_finished")
    assert [e["round"] for e in finished] == [1, 2]
    assert finished[0]["bytes"] == dict.fromkeys(SITES, 12)


@pytest.mark.parametrize(
    ("fault", "event", "says"),
    [
        (nan, "update_refused", "tensor 'w' has values that are not finite"),
        (other_shape, "update_refused", "tensor 'v' has the shape [2, 1], the model's is [1, 1]"),
        (missing_tensor, "update_refused", "tensor 'v' is missing"),
        (another_round, "update_refused", "it answers round 7, this is round 1"),
        (tampered, "update_refused", "the bytes of shard 0 are not those of the manifest"),
        (other_manifest, "update_refused", "the manifest's shards do not add up to the payload"),
        (no_tensors, "update_refused", "the payload is no safetensors file"),
        (endless_weight, "update_refused", "the figure 'patients' is missing, negative or not finite"),
        (no_figures, "update_refused", "the reply has no 'metrics' record"),
        (failing, "site_refused", "the work failed at this site"),
    ],
)
def test_a_bad_update_is_refused_by_name_and_the_quorum_goes_on(
    run: Run, fault: Fault, event: str, says: str
) -> None:
    model = run.go(FaultyGrid(run.sites.app(), fault))
    refused = run.events(event)
    assert [(e["site"], e["round"], e["fault"]) for e in refused] == [("b", 1, says)]
    assert same(model, plus(2.0 + 2.0))  # (1 + 3) / 2 without b, then (1 + 2 + 3) / 3


def test_a_second_answer_counts_once(run: Run) -> None:
    model = run.go(FaultyGrid(run.sites.app(), lambda message: [message, message]))
    assert same(model, plus(4.0))
    assert [(e["site"], e["fault"]) for e in run.events("reply_refused")] == [("b", "it answered twice")]


def test_a_late_answer_is_named_and_left_out(run: Run) -> None:
    hurried = run.study.model_copy(update={"rounds": run.study.rounds.model_copy(update={"deadline_s": 2.0})})
    run.study = run.sites.study = hurried
    grid = FaultyGrid(run.sites.app())

    def hold(message: Message) -> list[Message]:
        grid.held.append(message)
        return []

    grid.fault = hold
    model = run.go(grid)
    assert [(e["site"], e["round"]) for e in run.events("site_silent")] == [("b", 1)]
    assert [(e["site"], e["round"], e["fault"]) for e in run.events("reply_refused")] == [
        ("b", 1, "it came too late")
    ]
    assert same(model, plus(4.0))


def test_below_the_quorum_the_run_stops_and_goes_on_later_with_what_it_has(run: Run) -> None:
    strict = run.study.model_copy(
        update={"rounds": run.study.rounds.model_copy(update={"quorum": 3, "deadline_s": 2.0})}
    )
    run.study = run.sites.study = strict
    start = time.monotonic()
    with pytest.raises(RoundFailed, match="Round 2 has 2 usable updates of the 3 that it needs; none from b"):
        run.go(FaultyGrid(run.sites.app(), lambda _: [], number=2))
    assert time.monotonic() - start < 30
    assert run.store.finished() == [0, 1]
    run.sites.trained.clear()
    model = run.go(FaultyGrid(run.sites.app()))
    assert run.sites.trained == [("b", 2)], "the updates that had arrived are used, only b is asked again"
    assert same(model, plus(4.0))


def test_a_finished_run_asks_nobody(run: Run) -> None:
    run.go(FaultyGrid(run.sites.app()))
    run.sites.trained.clear()
    assert same(run.go(FaultyGrid(run.sites.app())), plus(4.0))
    assert run.sites.trained == []


def test_updates_for_another_model_are_asked_again(run: Run) -> None:
    """An update on the disk belongs to one model; after that model changed it is not folded."""
    with pytest.raises(RoundFailed):
        strict = run.study.rounds.model_copy(update={"quorum": 3, "deadline_s": 2.0})
        Run(run.study.model_copy(update={"rounds": strict}), run.folder, run.sites).go(
            FaultyGrid(run.sites.app(), lambda _: [])
        )
    run.store.save(Checkpoint(0, 0, plus(10.0), {}, {"baseline": {}}))
    run.sites.trained.clear()
    assert same(run.go(FaultyGrid(run.sites.app())), plus(14.0))
    assert [entry for entry in run.sites.trained if entry[1] == 1] == [(s, 1) for s in SITES]


def test_named_sites_must_be_there(run: Run, tmp_path: Path) -> None:
    grid = FaultyGrid(run.sites.app())
    del grid.contexts[3]
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(UserError, match="needs site 'b'"):
        name_sites(grid, run.study, log, wait_s=0.1)


class DistrustfulGrid(FaultyGrid):
    """One node answers as Flower's does to a bundle that nobody whom it trusts has signed."""

    def deliver(self, message: Message) -> Message:
        if message.metadata.dst_node_id == self.site:
            return Message(FAB_VERIFICATION_ERROR, reply_to=message)
        return super().deliver(message)


def test_a_site_that_does_not_run_the_code_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    start = time.monotonic()
    with pytest.raises(UserError, match="needs site 'b', and 1 connected sites do not run this code"):
        name_sites(DistrustfulGrid(run.sites.app()), run.study, log, wait_s=60.0)
    assert time.monotonic() - start < 30.0
    (refused,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "site_refused"]
    assert refused["fault"] == "The FAB could not be verified."


def test_one_name_twice_is_refused(run: Run, tmp_path: Path) -> None:
    grid = FaultyGrid(run.sites.app())
    grid.contexts[9] = Context(1, 9, {"name": "a"}, RecordDict(), {})
    with pytest.raises(UserError, match="Two nodes say that they are site 'a'"):
        name_sites(grid, run.study, EventLog(tmp_path / "events.jsonl"), wait_s=0.1)


class ChangingGrid(FaultyGrid):
    """Nodes leave and come: which are connected is worked out from what the sites have been asked so far."""

    def __init__(self, run: Run, connected: Callable[[set[tuple[str, int]]], set[int]]) -> None:
        super().__init__(run.sites.app())
        self.connected = lambda: connected(set(run.sites.trained))

    def get_node_ids(self) -> Iterable[int]:
        connected = self.connected()
        return [node for node in super().get_node_ids() if node in connected]


def declared(run: Run, **rounds: Any) -> Run:
    changed = Rounds.model_validate({**run.study.rounds.model_dump(), **rounds})
    run.study = run.sites.study = run.study.model_copy(update={"rounds": changed})
    return run


def test_a_site_that_is_away_is_named_and_takes_part_again(run: Run) -> None:
    """b is away in round 2 and comes back as another node; the round goes on by its quorum."""
    declared(run, rounds=3)

    def connected(trained: set[tuple[str, int]]) -> set[int]:
        return {2, 3, 4} if ("a", 1) not in trained else {2, 4} if ("a", 2) not in trained else {2, 4, 9}

    grid = ChangingGrid(run, connected)
    grid.contexts[9] = Context(1, 9, {"name": "b"}, RecordDict(), {})
    assert same(run.go(grid), plus(2.0 + 2.0 + 2.0))
    assert run.sites.trained == [(s, r) for r in (1, 2, 3) for s in SITES if (s, r) != ("b", 2)]
    told = run.events("site_away", "site_back", "round_goes_on")
    assert [(e["event"], e["round"], e.get("site") or e.get("missing")) for e in told] == [
        ("site_away", 2, "b"), ("round_goes_on", 2, ["b"]), ("site_back", 3, "b"),
    ]  # fmt: skip
    assert [e["site"] for e in run.events("site_configured")] == ["a", "b", "c", "b"], "the new node gets the study"
    assert [e["sites"] for e in run.events("sites_asked")] == [["a", "b", "c"], ["a", "c"], ["a", "b", "c"]]


def test_a_site_that_comes_back_before_the_deadline_is_asked_then(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """b is away when round 2 begins, and the quorum needs it."""
    monkeypatch.setattr("server.missing.LOOK_S", 0.05)
    declared(run, quorum=3, deadline_s=30.0)
    looks: list[int] = []

    def connected(trained: set[tuple[str, int]]) -> set[int]:
        if ("c", 2) in trained:
            looks.append(1)
        return {2, 3, 4} if ("c", 1) not in trained or len(looks) > 2 else {2, 4}

    assert same(run.go(ChangingGrid(run, connected)), plus(4.0))
    assert [e["sites"] for e in run.events("sites_asked")] == [["a", "b", "c"], ["a", "c"], ["b"]]
    assert [(e["event"], e["round"]) for e in run.events("site_away", "site_back")] == [
        ("site_away", 2), ("site_back", 2),
    ]  # fmt: skip


def test_a_second_node_of_a_sites_name_is_refused_while_the_run_goes_on(run: Run) -> None:
    grid = ChangingGrid(run, lambda trained: {2, 3, 4} if ("a", 1) not in trained else {2, 3, 4, 9})
    grid.contexts[9] = Context(1, 9, {"name": "b"}, RecordDict(), {})
    assert same(run.go(grid), plus(4.0))
    assert [(e["site"], e["fault"]) for e in run.events("site_refused")] == [
        ("b", "another node is this site already")
    ]


def test_a_study_that_waits_asks_until_all_have_answered(run: Run) -> None:
    declared(run, rounds=1, quorum=None, on_missing="wait", deadline_s=1.0)
    lost = [1, 2]
    model = run.go(FaultyGrid(run.sites.app(), lambda message: [] if lost and lost.pop() else [message]))
    assert same(model, plus(2.0))
    assert [e["missing"] for e in run.events("round_waits")] == [["b"], ["b"]]
    assert [e["sites"] for e in run.events("sites_asked")] == [["a", "b", "c"], ["b"], ["b"]]


def test_a_study_that_stops_does_so_with_what_has_arrived(run: Run) -> None:
    declared(run, quorum=None, on_missing="stop", deadline_s=2.0)
    with pytest.raises(RoundFailed, match="Round 2 has 2 usable updates of the 3 that it needs; none from b"):
        run.go(FaultyGrid(run.sites.app(), failing, number=2))
    assert run.store.received(2, "a").exists() and run.store.finished() == [0, 1]


def test_what_arrived_from_a_site_counts_when_it_is_away_at_the_resume(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.rounds.DESCRIBE_S", 0.1)
    declared(run, rounds=1, quorum=3, deadline_s=2.0)
    with pytest.raises(RoundFailed):
        run.go(FaultyGrid(run.sites.app(), lambda _: []))
    declared(run, quorum=2)
    assert same(run.go(ChangingGrid(run, lambda _: {3, 4})), plus(2.0)), "a's is there, b is asked again"
    assert run.sites.trained == [("a", 1), ("b", 1), ("c", 1), ("b", 1)]
