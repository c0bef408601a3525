"""Where a site stands, from its own folder alone: joined, and of each study approved, configured, training."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client import progress
from client.audit import whole_lines
from client.policy import Refusal, check_approved
from client.replies import Trained
from client.same_registry import said_of
from client.site import Site
from common.lock import Held, only_one

CONNECTED = b"SuperNode ID:"
"""What Flower's node writes when the coordinator has taken its key."""
BROKEN, MENDED = b"Connection attempt failed, retrying", b"Connection successful after"
"""And when a call does not get through, and when one does again."""


@dataclass(frozen=True)
class Connection:
    stands: bool
    told: str


def connection(site: Site) -> Connection:
    lock, log = site.state / "join.lock", site.state / "logs" / "node.log"
    if not lock.exists():
        return Connection(False, "never joined from this folder")
    try:
        with only_one(lock, 0.0):
            return Connection(False, "not joined now")
    except Held:
        said = log.read_bytes() if log.exists() else b""
    if CONNECTED not in said:
        return Connection(False, f"joining, not connected yet: see {log}")
    if said.rfind(BROKEN) > max(said.rfind(MENDED), said.rfind(CONNECTED)):
        return Connection(False, f"joined, but the coordinator is not reached now; it is tried again: see {log}")
    return Connection(True, "joined; the coordinator has taken this site's key (registered)")


def last_answered(site: Site) -> tuple[float, str] | None:
    """When the last round's answer left, and which round of which run that was; None where none did."""
    for line in reversed(whole_lines(site.state / "audit.jsonl")):
        entry = json.loads(line)
        if entry["kind"] == Trained.__name__:
            return float(entry["time"]), f"round {entry['round']} of {entry['run']}"
    return None


def health(site: Site, within_s: float | None) -> Connection:
    """Whether the site is connected and, where `within_s` is given, has answered a round within so many seconds."""
    found, last = connection(site), last_answered(site)
    ago = None if last is None else time.time() - last[0]
    told = "no round answered yet" if last is None else f"{last[1]} answered {ago:.0f} s ago"
    in_time = within_s is None or (ago is not None and ago <= within_s)
    return Connection(found.stands and in_time, f"{found.told}; {told}")


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
