"""A site whose key is revoked amid a run: nobody waits for it, and nothing of it is folded from then on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from common.errors import UserError
from common.study import Study
from server.gathering import RoundFailed
from server.run_folder import EventLog
from server.sites import Roll
from tests.server.adding import SITES, Adding, FaultyGrid, Run, plus, same

NEVER_S = 3600.0
"""A deadline that a test which waits for it does not live to see."""


def run_of(small_study: Callable[..., Study], folder: Path, after: tuple[str, int], **rounds: Any) -> Run:
    """A run in which b is revoked when a site has trained in a round."""
    values = {"rounds": 2, "local_steps": 2, "deadline_s": NEVER_S, "validation_patients": 12, **rounds}
    study = small_study(sites={"train": list(SITES)}, rounds=values)
    sites = Adding(study, folder / "sites", [])
    return Run(study, folder, sites, lambda: frozenset("b" if after in sites.trained else ""))


def silent(_: Message) -> list[Message]:
    return []


@pytest.mark.parametrize(("after", "fault"), [(("b", 1), silent), (("c", 1), None)])
def test_the_others_go_on_without_it(
    small_study: Callable[..., Study], tmp_path: Path, after: tuple[str, int], fault: Callable[..., Any] | None
) -> None:
    """It is at work, or its update is there already; a and c add 1 and 3."""
    run = run_of(small_study, tmp_path, after, quorum=2)
    assert same(run.go(FaultyGrid(run.sites.app(), fault)), plus(2.0 + 2.0))
    assert [(e["site"], e["round"]) for e in run.events("site_revoked")] == [("b", 1)]
    assert ("b", 2) not in run.sites.trained
    assert all(e["contributions"].keys() == {"a", "c"} for e in run.events("round_finished"))


def test_a_study_that_waits_for_all_its_sites_stops_and_says_so(
    small_study: Callable[..., Study], tmp_path: Path
) -> None:
    run = run_of(small_study, tmp_path, ("b", 1), on_missing="wait")
    with pytest.raises(RoundFailed, match="Round 1 has 2 usable updates of the 3 that it needs; none from b"):
        run.go(FaultyGrid(run.sites.app(), silent))
    assert not run.events("round_waits") and run.events("site_revoked")


def test_a_resumed_run_does_not_look_for_it(small_study: Callable[..., Study], tmp_path: Path) -> None:
    run = run_of(small_study, tmp_path, ("b", 1), quorum=2)
    grid = FaultyGrid(run.sites.app())
    del grid.contexts[3]
    roll = Roll(grid, run.study, EventLog(tmp_path / "events.jsonl"), revoked=lambda: frozenset({"b"}))
    assert roll.assemble(2, NEVER_S) == {"a": 2, "c": 4}
    with pytest.raises(UserError, match="needs 3 of its sites, and the key of site 'b' was revoked"):
        roll.assemble(3, NEVER_S)
