"""Where a run stands, from its event log alone: who was asked in each round, what came of it, what was folded."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from server.run_folder import RunFolder, read_events

TROUBLES = ("site_refused", "site_revoked", "site_silent", "site_unreachable", "update_refused", "reply_refused",
            "step_refused")  # fmt: skip
SHOWN = 6
"""Rounds that are shown of each seed, the last ones."""


@dataclass
class Standing:
    """One site in one round."""

    asked: bool = False
    arrived: bool = False
    weight: float | None = None
    """Its part in the fold; None while the round is not finished, or where it was not folded."""
    missing: str = ""
    """Why nothing has come from it."""
    refused: str = ""
    """Why what came from it was not taken, or what the site's own refusal says."""
    steps: str = ""
    """How far it is, where that is known."""

    @property
    def at_work(self) -> bool:
        return self.asked and not (self.arrived or self.missing or self.refused)


@dataclass
class RoundStanding:
    """A round's sites. `waits`: who is waited for, where the study waits for all."""

    sites: dict[str, Standing] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    finished: bool = False

    def slow(self) -> set[str]:
        """Those at work while at least half of those that were asked have answered."""
        asked = [name for name, site in self.sites.items() if site.asked]
        working = {name for name in asked if self.sites[name].at_work}
        return working if 2 * len(working) <= len(asked) else set()

    def take(self, event: dict[str, Any]) -> None:
        """Follow one event of the round."""
        kind, name = event["event"], event.get("site", "")
        if kind == "round_started":
            self.sites = {site: self.sites.get(site, Standing()) for site in event["sites"]}
        elif kind == "sites_asked":
            for site in event["sites"]:
                self.sites[site] = Standing(asked=True)
        elif kind == "round_waits":
            self.waits = event["missing"]
        elif kind == "round_finished":
            self.finish(event["contributions"])
        elif name in self.sites and not self.sites[name].arrived:
            self.about_site(kind, self.sites[name], event)

    @staticmethod
    def about_site(kind: str, site: Standing, event: dict[str, Any]) -> None:
        if kind == "update_received":
            site.arrived, site.missing, site.refused = True, "", ""
        elif kind in ("site_refused", "update_refused"):
            site.refused = event["fault"]
        elif kind == "site_revoked":
            site.missing = "its key was revoked"
        elif kind == "site_silent":
            site.missing = f"no answer in {event['deadline_s']:.0f} s"
        elif kind == "site_unreachable":
            site.missing = "not to be reached"
        elif kind == "site_away":
            site.missing = "not connected"
        elif kind == "site_back":
            site.missing = ""
        elif kind == "site_progress":
            site.steps = f"step {event['step']} of {event['steps']}"
        elif kind == "update_offered":
            site.steps = "trained, its update is on its way"
        elif kind == "asked_again":
            site.steps = f"asked again ({event['fault']})"

    def finish(self, contributions: dict[str, dict[str, float]]) -> None:
        self.finished, self.waits = True, []
        for name, told in contributions.items():
            site = self.sites[name]
            site.arrived, site.weight = True, told["weight"]


def standings(events: Iterable[dict[str, Any]]) -> dict[int, dict[int, RoundStanding]]:
    """Seed -> round -> what is known of it, of the federated arm."""
    found: dict[int, dict[int, RoundStanding]] = {}
    for event in events:
        if event.get("arm") == "federated" and event.get("round", 0) > 0:
            found.setdefault(event["seed"], {}).setdefault(event["round"], RoundStanding()).take(event)
    return found


def site_standings(events: Iterable[dict[str, Any]], sites: Iterable[str]) -> dict[str, str]:
    """Where each site is in a run's federated arm, as far as the coordinator can know. A site that was configured has
    approved the study."""
    found = dict.fromkeys(sites, "not configured yet")
    for event in events:
        asked = event.get("sites", ()) if event["event"] == "sites_asked" else (event.get("site", ""),)
        word = standing_word(event)
        for site in asked if word else ():
            if site in found:
                found[site] = word
    return found


def standing_word(event: dict[str, Any]) -> str:
    """What an event says of where its site is; empty where it says nothing."""
    match event:
        case {"event": "site_configured"}:
            return "configured: it has approved the study"
        case {"event": "sites_asked", "round": number}:
            return f"training, round {number}"
        case {"event": "site_progress", "round": number, "step": step, "steps": steps}:
            return f"training, round {number}: step {step} of {steps}"
        case {"event": "update_received" | "site_trained", "round": number}:
            return f"trained in round {number}"
        case {"event": "site_refused", "round": number, "fault": fault}:
            return f"refused in round {number}: {fault}"
        case {"event": "site_silent" | "site_unreachable", "round": number}:
            return f"no answer in round {number}"
        case {"event": "site_away"}:
            return "not connected"
        case {"event": "site_back"}:
            return "connected again"
        case {"event": "site_revoked"}:
            return "revoked"
    return ""


def rounds_table(rounds: dict[int, RoundStanding], title: str) -> Table:
    table = Table("round", "asked", "arrived", "folded (weight)", "missing", "slow", "refused", title=title)
    for number, standing in sorted(rounds.items())[-SHOWN:]:
        sites, slow = sorted(standing.sites.items()), standing.slow()
        lists = (
            [f"{name} {site.weight:.3f}" for name, site in sites if site.weight is not None],
            [f"{name}: {site.missing}" for name, site in sites if site.missing],
            [f"{name} {site.steps}".strip() for name, site in sites if name in slow],
            [f"{name}: {site.refused}" for name, site in sites if site.refused],
        )
        counts = (sum(site.asked for _, site in sites), sum(site.arrived for _, site in sites))
        table.add_row(str(number), *map(str, counts), *map(", ".join, lists))
    return table


def arms_table(events: list[dict[str, Any]], rounds: int) -> Table:
    """The last finished round of each arm. `rounds`: that the study has."""
    last = {
        (event["arm"], event["seed"], event.get("site", "")): event
        for event in events
        if event["event"] == "round_finished"
    }
    table = Table("arm", "seed", "site", "round", "validation")
    for (arm, seed, site), event in sorted(last.items()):
        accuracy = event.get("accuracy")
        shown = "" if accuracy is None else f"{100 * accuracy:.1f} %"
        table.add_row(arm, str(seed), site, f"{event['round']} of {rounds}", shown)
    return table


def print_status(folder: RunFolder, console: Console) -> None:
    about, events = folder.about(), list(read_events(folder.events))
    console.print(f"{folder.path}  arms {', '.join(about['arms'])}  seeds {about['seeds']}", soft_wrap=True)
    console.print(arms_table(events, folder.study().rounds.rounds))
    if about["arms"] == ["federated"]:
        for name, word in site_standings(events, folder.study().sites.train).items():
            console.print(f"{name:<24}{word}", markup=False, soft_wrap=True)
    for seed, rounds in sorted(standings(events).items()):
        console.print(rounds_table(rounds, f"Federated, seed {seed}: the last rounds"))
        number, standing = max(rounds.items())
        for name, site in sorted(standing.sites.items()):
            if site.at_work:
                console.print(f"round {number}: {name} is at work{f', {site.steps}' if site.steps else ''}")
        if standing.waits:
            console.print(f"round {number}: waiting for {', '.join(standing.waits)}, as the study says", soft_wrap=True)
    for event in events:
        if event["event"] in TROUBLES:
            whose = f"site {event['site']}, " if "site" in event else ""
            what = f"{event['event']}: {whose}round {event.get('round', '?')}"
            console.print(f"{what}: {event.get('fault', event.get('kind', ''))}", soft_wrap=True, markup=False)
    if (folder.path / "report.html").exists():
        console.print(f"report  {folder.path / 'report.html'}", soft_wrap=True)
    finished = any(event["event"] == "run_finished" for event in events)
    console.print("finished" if finished else "not finished")
