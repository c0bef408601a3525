"""From events to what the pictures and tables of a run's course show."""

from collections.abc import Sequence
from typing import Any

from server.report.charts import SPENT, Curve
from server.report.inputs import Event, RunRecord
from server.report.words import ARM_NAMES

ALL_SITES = "All training sites"
Panels = dict[str, dict[str, list[Curve]]]
"""Place -> arm -> one curve a seed."""


def weighted(sites: Sequence[dict[str, Any]], figure: str) -> float | None:
    """Mean of a figure over sites, each with its number of questions; None where nobody has it."""
    known = [s for s in sites if s.get(figure) is not None and s["n_questions"] > 0]
    asked = sum(s["n_questions"] for s in known)
    return sum(s[figure] * s["n_questions"] for s in known) / asked if asked else None


def validated(record: RunRecord, arm: str, seed: int) -> dict[int, dict[str, dict[str, Any]]]:
    """Round -> site -> its validation figures."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for event in record.of("round_finished"):
        if (event["arm"], event["seed"]) == (arm, seed):
            rounds.setdefault(event["round"], {}).update(event.get("sites", {}))
    return dict(sorted(rounds.items()))


def runs_of(record: RunRecord, event: str) -> list[tuple[str, int]]:
    """(arm, seed) with such events, in the report's order of arms."""
    found = {(e["arm"], e["seed"]) for e in record.of(event)}
    return sorted(found, key=lambda run: (list(ARM_NAMES).index(run[0]), run[1]))


def curve(rounds: dict[int, list[dict[str, Any]]]) -> Curve | None:
    """Accuracy by round, from the base model's at round 0; None without a figure."""
    points = {n: weighted(sites, "accuracy") for n, sites in rounds.items()}
    first = [weighted(sites, "baseline") for sites in rounds.values()]
    known = {0: first[0]} | points if first else points
    pairs = [(n, value) for n, value in known.items() if value is not None]
    return (
        ([n for n, _ in pairs], [value for _, value in pairs]) if any(v is not None for v in points.values()) else None
    )


def learning_curves(record: RunRecord) -> tuple[Panels, dict[str, float]]:
    """Panels (all sites first, then each training site) and each panel's baseline, mean over runs."""
    panels: Panels = {}
    baselines: dict[str, list[float]] = {}
    for place in (ALL_SITES, *record.study.sites.train):
        for arm, seed in runs_of(record, "round_finished"):
            rounds = {
                n: list(sites.values()) if place == ALL_SITES else [sites[place]]
                for n, sites in validated(record, arm, seed).items()
                if place == ALL_SITES or place in sites
            }
            found = curve(rounds)
            if found is None:
                continue
            panels.setdefault(place, {}).setdefault(arm, []).append(found)
            start = weighted(next(iter(rounds.values())), "baseline")
            if start is not None:
                baselines.setdefault(place, []).append(start)
    return panels, {place: sum(values) / len(values) for place, values in baselines.items()}


def reward_curves(record: RunRecord) -> Panels:
    """Mean training reward of each round's local steps, by site."""
    panels: Panels = {}
    for arm, seed in runs_of(record, "steps"):
        by_site: dict[str, dict[int, float]] = {}
        for event in record.of("steps"):
            if (event["arm"], event["seed"]) == (arm, seed) and event["reward"]:
                by_site.setdefault(event["site"], {})[event["round"]] = sum(event["reward"]) / len(event["reward"])
        for site, means in sorted(by_site.items()):
            rounds = sorted(means)
            panels.setdefault(site, {}).setdefault(arm, []).append((rounds, [means[n] for n in rounds]))
    return panels


def time_spent(record: RunRecord) -> dict[str, dict[str, float]]:
    """Arm -> what -> seconds over its rounds, seeds and sites; without rounds, what the result says of all arms."""
    rows: dict[str, dict[str, float]] = {}
    for arm in ARM_NAMES:
        for event in record.of("round_finished"):
            if event["arm"] == arm:
                row = rows.setdefault(ARM_NAMES[arm], {})
                for what, seconds in event.get("seconds", {}).items():
                    row[what] = row.get(what, 0.0) + seconds
    if not rows:
        rows["All arms"] = {what: s for what, s in record.result.get("seconds", {}).items() if what in SPENT}
    return {name: parts for name, parts in rows.items() if sum(parts.values()) > 0}


def bytes_sent(record: RunRecord) -> list[tuple[int, int, dict[str, int]]]:
    """(seed, round, site -> bytes) of the federated arm."""
    events: list[Event] = [e for e in record.of("round_finished") if e["arm"] == "federated" and e.get("bytes")]
    return sorted(((e["seed"], e["round"], e["bytes"]) for e in events), key=lambda row: row[:2])


def gated_rounds(record: RunRecord) -> list[Event]:
    """The finished rounds whose outer steps a held-out gate looked at, by seed and round."""
    return sorted((e for e in record.of("round_finished") if "gate" in e), key=lambda e: (e["seed"], e["round"]))
