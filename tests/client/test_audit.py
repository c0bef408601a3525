"""The hash chain: what is changed, removed or reordered is found and located."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.audit import START, Passage, append, first_broken

PASSAGE = Passage("Trained", "0" * 64, "run", 1, 100, "f" * 64)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for number in range(4):
        append(path, Passage("Trained", "0" * 64, "run", number, 100, "f" * 64))
    return path


def test_an_untouched_chain_is_whole(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert first_broken(log) is None
    assert [line["n"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["previous"] == START
    assert [line["previous"] for line in lines[1:]] == [line["hash"] for line in lines[:-1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 3), key=st.sampled_from(["kind", "study", "run", "round", "bytes", "sha256", "time"]))
def test_a_changed_field_breaks_the_chain_where_it_is(log: Path, place: int, key: str) -> None:
    whole = log.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    lines[place][key] = "something else"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_broken(log) == place
    log.write_text(whole)


def test_a_removed_line_is_located(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:1] + lines[2:]))
    assert first_broken(log) == 1


def test_a_line_that_is_no_entry_is_located(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:2], "[]\n", *lines[2:]]))
    assert first_broken(log) == 2


def test_a_line_cut_short_by_a_kill_stands_for_nothing(log: Path) -> None:
    whole = log.read_text()
    log.write_text(whole + whole.splitlines()[-1][:40])
    append(log, PASSAGE)
    assert first_broken(log) is None
    assert len(log.read_text().splitlines()) == 5
