"""What is durable is whole, and what a kill cut short is not taken for something else."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polars.exceptions import ComputeError
from safetensors import SafetensorError

from common.errors import UserError
from common.study import Study
from server.round_store import Checkpoint, RoundStore
from server.run_folder import (
    EventLog,
    check_writable,
    create_run,
    open_run,
    read_events,
    reopen_run,
    write_atomic,
    write_json,
)

MODEL = {"w": torch.arange(4, dtype=torch.float32), "b": torch.zeros(2, dtype=torch.bfloat16)}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_json(path, {"n": 1})

    def fail(part: Path) -> None:
        part.write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"n": 1}


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_no_scraps(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    # As the file system, polars and safetensors tell it.
    told = (
        OSError(errno.ENOSPC, "No space left on device"),
        ComputeError("parquet: underlying IO error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    )
    for error in told:

        def fill(part: Path, error: Exception = error) -> None:
            part.write_bytes(b"half")
            raise error

        with pytest.raises(UserError, match="answers.parquet: it cannot be used .No space left on device."):
            write_atomic(path, fill)
        assert list(tmp_path.iterdir()) == []


def test_a_run_can_be_looked_at_where_nothing_can_be_written(
    small_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path, small_study(), [1], ["base"], 0.0)
    monkeypatch.setattr(check_writable, "__defaults__", (2**60, "--runs"))
    assert open_run(run.path).study() == small_study()
    with pytest.raises(UserError, match="MiB are free"):
        reopen_run(run.path)


def test_a_run_whose_particulars_are_cut_short_is_named(small_study: Callable[..., Study], tmp_path: Path) -> None:
    run = create_run(tmp_path, small_study(), [1], ["base"], 0.0)
    (run.path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json: not valid JSON"):
        open_run(run.path)


def test_events_survive_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("first")
    with path.open("a") as file:
        file.write('{"event": "sec')
    EventLog(path, arm="federated").write("third", round=3)
    assert [(e["event"], e.get("arm"), e.get("round")) for e in read_events(path)] == [
        ("first", None, None),
        ("third", "federated", 3),
    ]


def test_an_event_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        EventLog(tmp_path / "events.jsonl").write("odd", value=float("nan"))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    assert store.latest() is None
    store.save(Checkpoint(0, 0, MODEL, {}, {}))
    store.save(Checkpoint(1, 5, MODEL, {"m": torch.ones(2, dtype=torch.float64)}, {"accuracy": 0.5}))
    latest = store.latest()
    assert latest is not None and (latest.round, latest.step, latest.notes) == (1, 5, {"accuracy": 0.5})
    assert all(torch.equal(latest.model[n], MODEL[n]) and latest.model[n].dtype == MODEL[n].dtype for n in MODEL)
    assert torch.equal(latest.outer["m"], torch.ones(2, dtype=torch.float64))


def test_a_round_without_its_note_is_not_finished(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    for number in (0, 1):
        store.save(Checkpoint(number, number, MODEL, {}, {}))
    (tmp_path / "round-0001.json").unlink()
    latest = store.latest()
    assert latest is not None and latest.round == 0


def test_old_models_are_pruned_but_the_first_and_the_last_stay(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    for number in range(6):
        store.save(Checkpoint(number, number, MODEL, {"m": torch.ones(1)}, {"accuracy": number / 10}))
        store.prune(2)
    assert store.finished() == [0, 1, 2, 3, 4, 5], "every round's figures stay"
    assert store.kept() == [0, 4, 5]
    assert sorted(path.name for path in tmp_path.glob("*.outer.safetensors")) == [
        "round-0000.outer.safetensors", "round-0004.outer.safetensors", "round-0005.outer.safetensors",
    ]  # fmt: skip
    (tmp_path / "round-0005.json").unlink()
    latest = store.latest()
    assert latest is not None and latest.round == 4, "what is left is gone on from"


def test_without_a_policy_nothing_is_pruned(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    for number in range(4):
        store.save(Checkpoint(number, number, MODEL, {}, {}))
        store.prune(None)
    assert store.kept() == [0, 1, 2, 3]


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    store.save(Checkpoint(0, 0, MODEL, {}, {}))
    path = tmp_path / "round-0000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not those that were written"):
        store.latest()


def test_runs_of_one_second_get_folders_of_their_own(small_study: Callable[..., Study], tmp_path: Path) -> None:
    first, second = (create_run(tmp_path, small_study(), [1], ["base"], 0.0) for _ in range(2))
    assert first.path != second.path
    assert open_run(first.path).study() == small_study()
    assert first.about()["study_hash"] == small_study().hash


def test_a_full_disk_is_refused_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MiB are free, a run needs"):
        check_writable(tmp_path, need=2**60)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="nothing can be written here"):
        check_writable(tmp_path / "runs")
