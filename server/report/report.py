"""Writes `report.html`: one file without outside resources, from what lies in a run folder."""

import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, StrictUndefined

from common.grpo.rewards import boxed_letter, boxed_text, right_answer
from server.report import charts, timeline, words
from server.report.inputs import RunRecord, read_record
from server.report.result import PAIRS
from server.run_folder import write_atomic

LETTERS = "ABCDE"
MOST_EXAMPLES = 6


def write_report(run_folder: Path) -> Path:
    """Build the report of a finished or unfinished run.

    Returns:
        the path of `report.html` in the run folder.

    Raises:
        UserError: this is no run folder.
    """
    html = render(read_record(run_folder))
    path = run_folder / "report.html"
    write_atomic(path, lambda part: part.write_text(html, encoding="utf-8"))
    return path


def render(record: RunRecord) -> str:
    """The report as HTML text: the same for the same record."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": words.percent, "bounds": words.bounds, "points": words.points, "point_bounds": words.point_bounds,
        "size": words.size, "duration": words.duration,
    }  # fmt: skip
    template = environment.from_string((files("server.report") / "report.html.jinja").read_text(encoding="utf-8"))
    result = record.result
    return template.render(
        study=record.study,
        about=record.about,
        started=utc(record.about["started"]) if "started" in record.about else None,
        complete=result.get("complete", False),
        seeds=result.get("seeds") or record.about.get("seeds", []),
        headline=words.headline(result),
        remarks=remarks(record),
        splits={s: n for s, n in words.SPLIT_NAMES.items() if any(s in a for a in result.get("arms", {}).values())},
        arms=result.get("arms", {}),
        tasks={task: words.TASK_NAMES[task] for task in record.study.questions.tasks},
        outcomes=outcome_names(result.get("arms", {})),
        settings=tomli_w.dumps(record.study.canonical()),
        arm_names=words.ARM_NAMES,
        yardsticks=words.YARDSTICKS,
        resamples=result.get("resamples", 0),
        p_value=words.p_value,
        comparisons=in_order(result.get("comparisons", {})),
        chance_left_out=charts.chance_is_far(result.get("arms", {})),
        gaps=result.get("gap_closed", {}),
        gap_bounds=result.get("gap_closed_ci95", {}),
        pictures=pictures(record),
        traffic=traffic(record),
        examples=examples(record),
        hash_matches=result.get("hash", record.study.hash) == record.study.hash,
    )


def in_order(comparisons: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [f"{first}-{second}" for first, second in PAIRS]
    return {pair: comparisons[pair] for pair in pairs if pair in comparisons}


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def remarks(record: RunRecord) -> list[str]:
    result = record.result
    found = [words.seeds_sentence(result), *(words.gap_sentence(result, split) for split in words.SPLIT_NAMES)]
    found.append(words.gate_sentence(timeline.gated_rounds(record)))
    return [sentence for sentence in found if sentence is not None]


def pictures(record: RunRecord) -> dict[str, dict[str, str]]:
    """Name -> `uri` and `alt`; only those that the run has figures for."""
    out = {}
    arms = record.result.get("arms", {})
    names = feature_names(arms)
    if arms:
        alt = "; ".join(
            f"{words.ARM_NAMES[arm]} on {words.SPLIT_NAMES[split]} {words.percent(found['accuracy'])}"
            for arm, splits in arms.items()
            for split, found in splits.items()
        )
        out["forest"] = {"uri": charts.forest(arms), "alt": f"Accuracy with 95 % intervals: {alt}."}
    for split, where in words.SPLIT_NAMES.items():
        parts = {a: splits[split]["by_feature"] for a, splits in arms.items() if split in splits}
        if parts:
            out[f"features_{split}"] = {
                "uri": charts.by_feature(parts, names),
                "alt": f"Accuracy of each arm for each feature on {where}; the same figures stand in the table below.",
            }
    panels, baselines = timeline.learning_curves(record)
    if panels:
        out["curves"] = {"uri": charts.curves(panels, baselines), "alt": curves_alt(panels, baselines)}
    rewards = timeline.reward_curves(record)
    if rewards:
        out["rewards"] = {"uri": charts.curves(rewards, {}), "alt": curves_alt(rewards, {})}
    spent = timeline.time_spent(record)
    if spent:
        alt = "; ".join(
            f"{arm}: " + ", ".join(f"{what} {words.duration(s)}" for what, s in parts.items())
            for arm, parts in spent.items()
        )
        out["time"] = {"uri": charts.stacked(spent), "alt": f"Time spent. {alt}."}
    return out


def curves_alt(panels: timeline.Panels, baselines: Mapping[str, float]) -> str:
    sentences = []
    for place, arms in panels.items():
        ends = []
        for arm, seeds in arms.items():
            rounds, values = charts.mean_curve(seeds)
            if rounds:
                ends.append(f"{words.ARM_NAMES[arm]} {words.percent(values[-1])} after round {rounds[-1]}")
        start = f"base {words.percent(baselines[place])}, " if place in baselines else ""
        sentences.append(f"{place}: {start}{', '.join(ends)}")
    return "Curves by round. " + "; ".join(sentences) + "."


def traffic(record: RunRecord) -> dict[str, Any] | None:
    """What the sites sent in the federated arm; None before the first round."""
    rows = timeline.bytes_sent(record)
    if not rows:
        return None
    sites = sorted({site for _, _, sent in rows for site in sent})
    totals = {site: sum(sent.get(site, 0) for _, _, sent in rows) for site in sites}
    return {"rows": rows, "sites": sites, "totals": totals, "total": sum(totals.values()), "updates": sum(
        len(sent) for _, _, sent in rows)}  # fmt: skip


def outcome_names(arms: Mapping[str, Any]) -> dict[str, str]:
    """Column of each outcome question -> the name that prompts print."""
    parts = [found["outcomes"] for splits in arms.values() for found in splits.values()]
    return {column: figures["name"] for part in parts for column, figures in part.items()}


def feature_names(arms: Mapping[str, Any]) -> dict[str, str]:
    """Column -> the name that prompts print."""
    parts = [found["by_feature"] for splits in arms.values() for found in splits.values()]
    return {column: figures["name"] for part in parts for column, figures in part.items()}


def examples(record: RunRecord) -> list[dict[str, Any]]:
    names = feature_names(record.result.get("arms", {}))
    out = []
    for example in record.examples[:MOST_EXAMPLES]:
        key = None if example["answer"] is None else LETTERS[example["answer"]]
        said = [
            {
                "arm": words.ARM_NAMES[arm],
                "text": text,
                "letter": boxed_text(text) if key is None else boxed_letter(text),
                "right": right_answer([text], [key], [example["reference"]]) == [1.0],
            }
            for arm, text in example["completions"].items()
            if text is not None
        ]
        name = names.get(example["feature"], example["feature"])
        out.append({**example, "name": name, "key": key, "said": said})
    return out
