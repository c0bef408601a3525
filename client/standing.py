"""Where a site stands, from its own folder alone: joined, and of each study approved, configured, training."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from client import progress
from client.policy import Refusal, check_approved
from client.same_registry import said_of
from client.site import Site
from common.lock import Held, only_one

CONNECTED = b"SuperNode ID:"
"""What Flower's node writes when the coordinator has taken its key."""


def connection(site: Site) -> str:
    lock, log = site.state / "join.lock", site.state / "logs" / "node.log"
    if not lock.exists():
        return "never joined from this folder"
    try:
        with only_one(lock, 0.0):
            return "not joined now"
    except Held:
        if log.exists() and CONNECTED in log.read_bytes():
            return "joined; the coordinator has taken this site's key (registered)"
        return f"joining, not connected yet: see {log}"


def approval(site: Site, study: str) -> str:
    """Args: `study`: its hash."""
    try:
        check_approved(site.settings.policy, study)
    except Refusal:
        return "approval has ended" if study in site.settings.policy.approved else "not approved"
    until = site.settings.policy.until.get(study)
    return "approved" if until is None else f"approved until {until:%Y-%m-%d}"


def work(site: Site, study: str) -> str:
    """The last steps of the study that were noted, in any of its runs, and whether the registry has changed since its
    questions were built."""
    folder = site.state / "studies" / study
    if not (folder / "study.json").exists():
        return "not configured"
    changed = said_of(folder)
    return f"{steps(folder)}; {changed}" if changed else steps(folder)


def steps(folder: Path) -> str:
    noted = [found for run in folder.glob("runs/*") if (found := progress.read(run)) is not None]
    if not noted:
        return "configured, no step taken"
    last = max(noted, key=lambda found: found.time)
    ago = f"{time.time() - last.time:.0f} s ago"
    if last.step < last.steps:
        return f"training in round {last.round} of {last.run}: step {last.step} of {last.steps}, {ago}"
    return f"configured; trained in round {last.round} of {last.run}, {ago}"


def studies(site: Site) -> Iterator[tuple[str, str]]:
    """(hash, name or "") of those that are approved or configured here."""
    known = dict.fromkeys(site.settings.policy.approved, "")
    for about in sorted(site.state.glob("studies/*/study.json")):
        known[about.parent.name] = json.loads(about.read_text(encoding="utf-8"))["study"]["name"]
    yield from known.items()
