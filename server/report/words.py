"""Figures in words: what the report says is computed from the result, never written by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

ARM_NAMES = {
    "base": "Base model",
    "local": "Each site alone",
    "federated": "Federated",
    "centralized": "Centralized",
    "random_letter": "Random letter",
    "most_frequent": "Most frequent value",
    "gradient_boosting": "Gradient boosting",
}
TASK_NAMES = {"masked_value": "Masked value", "outcome": "Outcome", "forecast": "Forecast"}
YARDSTICKS = ("random_letter", "most_frequent", "gradient_boosting")
SPLIT_NAMES = {"held_out": "held-out patients", "unseen_sites": "unseen hospitals"}
SPLIT_PATIENTS = {"held_out": "held-out patients of the training sites", "unseen_sites": "patients of unseen hospitals"}


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def bounds(ci: Sequence[float]) -> str:
    return f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, always with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def point_bounds(ci: Sequence[float]) -> str:
    return f"{points(ci[0])} to {points(ci[1])}"


def p_value(p: float, resamples: int) -> str:
    """The smallest p that the resamples can show is written as a bound."""
    smallest = 1 / (resamples + 1)
    return f"≤ {smallest:.1g}" if p < 1.5 * smallest else f"{p:.3f}"


def size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable: GB always returns")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def disjoint(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first["ci95"][0] > second["ci95"][1] or second["ci95"][0] > first["ci95"][1]


def headline(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What came out of federated against base: a sentence and its particulars for each split; empty while that is not
    known."""
    sentences = []
    for split, whom in SPLIT_PATIENTS.items():
        found = result.get("comparisons", {}).get("federated-base", {}).get(split)
        if found is None:
            continue
        federated, base = result["arms"]["federated"][split], result["arms"]["base"][split]
        low, high = found["ci95"]
        figures = f"{percent(federated['accuracy'])} against {percent(base['accuracy'])}"
        if low > 0 or high < 0:
            verb = "better" if low > 0 else "worse"
            sentence = (
                f"On {whom}, the federated model is {abs(100 * found['difference']):.1f} points {verb} than the base "
                f"model: {figures}."
            )
        else:
            sentence = f"On {whom}, the federated model cannot be told from the base model: {figures}."
        apart = "do not overlap" if disjoint(federated, base) else "overlap"
        detail = (
            f"95 % interval of the difference {point_bounds((low, high))} points; the two arms' own intervals {apart}. "
            f"{federated['n_questions']:,} questions about {federated['n_patients']:,} patients."
        )
        sentences.append((sentence, detail))
    return sentences


def seeds_sentence(result: Mapping[str, Any]) -> str | None:
    """In how many seeds federated stood above base on held-out patients."""
    found = result.get("comparisons", {}).get("federated-base", {}).get("held_out")
    if found is None:
        return None
    above = sum(s["difference"] > 0 for s in found["per_seed"])
    return f"Federated stood above base in {above} of {len(found['per_seed'])} seeds on held-out patients."


def gate_sentence(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """What the held-out gate did; None for a run without one. `rounds`: the `round_finished` that have a `gate`."""
    if not rounds:
        return None
    refused = [event for event in rounds if not event["gate"]["taken"]]
    if not refused:
        return f"The gate on the public cohort refused none of {len(rounds)} outer steps."
    named = [
        f"round {event['round']} of seed {event['seed']} ({percent(event['gate']['tried'])} right after "
        f"{percent(event['gate']['accuracy'])})"
        for event in refused
    ]
    return f"The gate on the public cohort refused {len(refused)} of {len(rounds)} outer steps: {listed(named)}."


def gap_sentence(result: Mapping[str, Any], split: str) -> str | None:
    """How far along the way from base rates to gradient boosting the federated model is."""
    closed = result.get("gap_closed", {}).get("federated", {}).get(split)
    if closed is None:
        return None
    low, high = result["gap_closed_ci95"]["federated"][split]
    start = result["gap_closed"].get("base", {}).get(split)
    before = "" if start is None else f" (the base model: {100 * start:.0f} %)"
    return (
        f"On {SPLIT_NAMES[split]} it closes {100 * closed:.0f} % of the distance from the most frequent value to "
        f"gradient boosting on the categorical columns{before}; 95 % interval {100 * low:.0f} to {100 * high:.0f} %."
    )
