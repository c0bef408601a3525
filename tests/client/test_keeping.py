"""What a site keeps of old runs, and that a run whose state is gone is not gone on with."""

import os
from pathlib import Path

import pytest

from client.keeping import keep_runs
from client.policy import RUN_REMOVED, Refusal


def run_folder(state: Path, study: str, name: str, age: int) -> Path:
    """A run's folder that was last written to at this second."""
    folder = state / "studies" / study / "runs" / name
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "optimizer-2.safetensors").write_bytes(b"0" * 100)
    os.utime(folder, (age, age))
    return folder


def test_the_runs_worked_on_last_stay(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path, f"study-{n % 2}", f"run-{n}", 1000 + n) for n in range(4)]
    fresh = tmp_path / "studies" / "study-0" / "runs" / "fresh"
    keep_runs(tmp_path, fresh, 3)
    assert [folder.exists() for folder in runs] == [False, False, True, True]
    keep_runs(tmp_path, runs[2], 1)
    assert [folder.exists() for folder in runs] == [False, False, True, False]


def test_a_removed_run_is_refused(tmp_path: Path) -> None:
    old = run_folder(tmp_path, "study", "old", 1)
    keep_runs(tmp_path, run_folder(tmp_path, "study", "new", 2), 1)
    with pytest.raises(Refusal) as refusal:
        keep_runs(tmp_path, old, None)
    assert refusal.value.code == RUN_REMOVED


def test_a_removal_that_was_cut_short_is_ended_and_costs_no_other_run_its_place(tmp_path: Path) -> None:
    kept, half = run_folder(tmp_path, "study", "kept", 1), run_folder(tmp_path, "study", "half", 2)
    half.with_name("half.removed").touch()
    keep_runs(tmp_path, tmp_path / "studies" / "study" / "runs" / "now", 2)
    assert kept.exists() and not half.exists()


def test_without_a_number_all_runs_stay(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path, "study", f"run-{n}", n) for n in range(5)]
    keep_runs(tmp_path, runs[0], None)
    assert all(folder.exists() for folder in runs)
