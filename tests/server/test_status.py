"""What `wardround status` shows of rounds, worked out from events alone."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from common.study import parse_study
from server.run_folder import EventLog, create_run, read_events
from server.status import print_status, rounds_table, site_standings, standings

SITES = ["a", "b", "c", "d"]


def told(folder: Path, *events: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The last round's sites by name, and the round, after these events were written and read."""
    log = EventLog(folder / "events.jsonl", arm="federated", seed=1)
    for event, fields in events:
        log.write(event, **{"round": 2, **fields})
    standing = standings(read_events(folder / "events.jsonl"))[1][2]
    return {**standing.sites, "round": standing}


def shown(standing: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rounds_table({2: standing}, "rounds"))
    return console.export_text()


START: tuple[tuple[str, dict[str, Any]], ...] = (
    ("round_started", {"sites": SITES, "rounds": 3}),
    ("site_away", {"site": "d"}),
    ("sites_asked", {"sites": ["a", "b", "c"]}),
)


def arrived(site: str) -> tuple[str, dict[str, Any]]:
    return "update_received", {"site": site, "bytes": 12, "figures": {}}


def test_a_round_under_way_tells_the_missing_from_the_slow(tmp_path: Path) -> None:
    early = told(tmp_path, *START, ("site_progress", {"site": "b", "step": 3, "steps": 15}), arrived("a"))
    assert early["d"].missing == "not connected" and not early["d"].asked
    assert early["b"].at_work and early["c"].at_work and early["round"].slow() == set()
    late = told(tmp_path, ("site_refused", {"site": "c", "fault": "it ran out of memory"}),
                ("site_progress", {"site": "b", "step": 7, "steps": 15}))  # fmt: skip
    assert late["round"].slow() == {"b"}
    row = shown(late["round"])
    assert "b step 7 of 15" in row and "c: it ran out of memory" in row and "d: not connected" in row
    lost = told(tmp_path, ("asked_again", {"site": "b", "kind": "train", "attempt": 2, "fault": "the reply was lost"}))
    assert lost["b"].at_work and "b asked again (the reply was lost)" in shown(lost["round"])
    offered = told(tmp_path, ("update_offered", {"site": "b", "bytes": 12, "shards": 1}))
    assert offered["b"].at_work and "b trained, its update is on its way" in shown(offered["round"])
    done = told(tmp_path, arrived("b"))
    assert done["round"].slow() == set() and done["b"].arrived


def test_a_finished_round_shows_the_weights_and_who_is_not_in_them(tmp_path: Path) -> None:
    contributions = {"a": {"weight": 0.75}, "b": {"weight": 0.25}}
    found = told(
        tmp_path, *START, arrived("a"), arrived("b"),
        ("site_silent", {"site": "c", "kind": "train", "deadline_s": 60.0}),
        ("round_goes_on", {"missing": ["c", "d"]}),
        ("site_silent", {"site": "a", "kind": "evaluate", "deadline_s": 60.0}),
        ("round_finished", {"contributions": contributions}),
    )  # fmt: skip
    assert found["round"].finished and (found["a"].weight, found["c"].weight) == (0.75, None)
    assert found["a"].missing == "", "no answer to the evaluation is not a missing update"
    row = shown(found["round"])
    assert "a 0.750, b 0.250" in row and "c: no answer in 60 s, d: not connected" in row


def test_a_round_that_waits_says_for_whom_until_they_came(tmp_path: Path) -> None:
    waiting = told(tmp_path, *START, arrived("a"), arrived("b"), arrived("c"), ("round_waits", {"missing": ["d"]}))
    assert waiting["round"].waits == ["d"]
    over = told(tmp_path, ("site_back", {"site": "d"}), ("sites_asked", {"sites": ["d"]}), arrived("d"),
                ("round_finished", {"contributions": dict.fromkeys(SITES, {"weight": 0.25})}))  # fmt: skip
    assert over["round"].waits == [] and all(over[site].weight == 0.25 for site in SITES)


def test_what_arrived_before_a_kill_counts_after_the_resume(tmp_path: Path) -> None:
    found = told(tmp_path, *START, arrived("a"), START[0], ("sites_asked", {"sites": ["b", "c"]}))
    assert found["a"].arrived and found["b"].at_work and found["d"].missing


def test_each_site_is_shown_where_it_is(tmp_path: Path) -> None:
    told(
        tmp_path, *(("site_configured", {"site": site, "patients": 9, "questions": 90}) for site in "abc"), *START,
        ("site_progress", {"site": "b", "step": 3, "steps": 15}), arrived("a"),
        ("site_revoked", {"site": "c"}), ("site_refused", {"site": 12345, "fault": "a stranger"}),
    )  # fmt: skip
    assert site_standings(read_events(tmp_path / "events.jsonl"), [*SITES, "e"]) == {
        "a": "trained in round 2",
        "b": "training, round 2: step 3 of 15",
        "c": "revoked",
        "d": "not connected",
        "e": "not configured yet",
    }
    log = EventLog(tmp_path / "events.jsonl")
    log.write("site_refused", site="e", round=1, fault="this site has not approved the study")
    last = site_standings(read_events(tmp_path / "events.jsonl"), ["e"])
    assert last == {"e": "refused in round 1: this site has not approved the study"}


def test_a_step_that_the_gate_refused_is_told(tmp_path: Path) -> None:
    values = {"name": "small", "sites": {"train": SITES}, "model": {"base": "a-model"}}
    run = create_run(tmp_path, parse_study(values, "test"), [1], ["federated"], started=0.0)
    fault = "20.0 % right on the public cohort after 31.0 %"
    run.log(arm="federated", seed=1).write("step_refused", round=2, fault=fault)
    console = Console(width=200, record=True, file=io.StringIO())
    print_status(run, console)
    assert f"step_refused: round 2: {fault}" in console.export_text()
