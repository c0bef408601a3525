"""All arms of a study on this machine: prepare, run the jobs, sum up.

Order of work, in worker processes: the questions of each seed and the base model; then every arm of every seed,
the longest first; then the results and the report.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from common.evaluation.scoring import right
from common.registry.config import read_registry_config
from common.study import Study
from server.jobs import SPLITS, YARDSTICKS, answered_path, is_done, jobs_of, work
from server.run_folder import RunFolder, read_json, write_json, write_text
from server.workers import Job, Workers

MODEL_ARMS = ("base", "local", "federated", "centralized")
ARMS = (*MODEL_ARMS, "yardsticks")
MOST_EXAMPLES = 6


def prepare(folder: RunFolder, seeds: list[int]) -> None:
    """Each seed's own study file, which the coordinator's app reads."""
    for seed in seeds:
        write_text(folder.seed(seed) / "study.toml", folder.study().with_seed(seed).to_toml())


def collect(folder: RunFolder, study: Study, seeds: list[int], arms: list[str]) -> dict[tuple[str, int, str], Any]:
    """(arm, seed, split) -> answered frame, of what is there; splits without a question are left out."""
    found = {}
    names = [a for a in arms if a != "yardsticks"] + (list(YARDSTICKS) if "yardsticks" in arms else [])
    for seed in seeds:
        for arm in names:
            sites = sorted(study.sites.train) if arm == "local" else [""]
            for split in SPLITS:
                paths = [answered_path(folder, Job(seed, arm, site), split) for site in sites]
                if not all(path.exists() for path in paths):
                    continue
                frame = pl.concat([pl.read_parquet(path) for path in paths])
                if not frame.is_empty():
                    found[arm, seed, split] = frame
    return found


def spent(folder: RunFolder, seeds: list[int]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by what they went to, and bytes by site, over the finished rounds of all arms."""
    seconds: dict[str, float] = {}
    sent: dict[str, int] = {}
    for seed in seeds:
        for path in sorted(folder.seed(seed).rglob("round-*.json")):
            notes = read_json(path)["notes"]
            for what, value in notes.get("seconds", {}).items():
                seconds[what] = seconds.get(what, 0.0) + value
            for site, value in notes.get("bytes", {}).items():
                sent[site] = sent.get(site, 0) + value
    return seconds, sent


def names(study: Study) -> dict[str, str]:
    """Printed names of the features, by column."""
    path = Path(study.simulation.site_configs) / f"{study.sites.train[0]}.toml"
    return {feature.column: feature.name for feature in read_registry_config(path).features}


def sum_up(folder: RunFolder, study: Study, seeds: list[int], arms: list[str], complete: bool) -> dict[str, Any]:
    """Write `result.json` from what is there."""
    from server.report.result import summarise

    answered = collect(folder, study, seeds, arms)
    seconds, sent = spent(folder, seeds)
    result = summarise(answered, study, complete=complete, seconds=seconds, bytes_sent=sent, names=names(study))
    write_json(folder.path / "result.json", result)
    return result


def examples(answered: dict[tuple[str, int, str], Any], seed: int) -> list[dict[str, Any]]:
    """A few held-out questions with every model arm's own words: first those that federated learned to answer."""
    frames = {arm: answered[arm, seed, "held_out"] for arm in MODEL_ARMS if (arm, seed, "held_out") in answered}
    if not frames:
        return []
    key = ["site", "patient", "question_id"]
    table = next(iter(frames.values())).select(*key, "prompt", "choices", "answer", "reference", "feature")
    for arm, frame in frames.items():
        table = table.join(frame.select(*key, pl.col("completion").alias(f"{arm} says"),
                                        right(frame, "boxed").alias(f"{arm} right")),
                           on=key, how="left")  # fmt: skip
    order = pl.lit(0)
    if "federated" in frames:
        order = order + pl.col("federated right").cast(pl.Int8)
        if "base" in frames:
            order = order - pl.col("base right").cast(pl.Int8)
    ranked = table.with_columns(order.alias("order")).sort(["order", *key], descending=[True, False, False, False])
    chosen = ranked.unique("feature", keep="first", maintain_order=True).head(MOST_EXAMPLES)
    return [
        {
            **{name: row[name] for name in ("prompt", "choices", "answer", "reference", "feature")},
            "completions": {arm: row[f"{arm} says"] for arm in frames},
        }
        for row in chosen.iter_rows(named=True)
    ]


def workers_for(study: Study) -> int:
    return study.simulation.workers or len(os.sched_getaffinity(0))


def run_arms(folder: RunFolder, cache: Path, tick: Callable[[list[Job]], None]) -> dict[str, Any]:
    """Do what is left of a run, from wherever it stands.

    Args:
        cache: folder of built models.
        tick: called several times a second, with the jobs that finished since.

    Returns:
        the content of `result.json`; `report.html` is written too.

    Raises:
        UserError: a site's file, the base model or a round is at fault; everything finished is kept.
    """
    from server.report.report import write_report

    with folder.alone():
        study, about = folder.study(), folder.about()
        seeds, arms = about["seeds"], about["arms"]
        log = folder.log()
        log.write("run_started" if not (folder.path / "result.json").exists() else "run_resumed")
        prepare(folder, seeds)
        # Questions first: what is wrong with a site's data is known before the base model is built, and that is
        # built once for all seeds.
        first = [*(Job(seed, "questions") for seed in seeds), Job(seeds[0], "model")]
        others = [Job(seed, "model") for seed in seeds[1:]]
        with Workers(folder.path, partial(work, cache=cache), workers_for(study)) as pool:
            pool.do([job for job in first if not is_done(folder, job)], tick)
            pool.do([job for job in others if not is_done(folder, job)], tick)
            pool.do([job for job in jobs_of(study, seeds, arms) if not is_done(folder, job)], tick)
        result = sum_up(folder, study, seeds, arms, complete=True)
        write_json(folder.path / "examples.json", examples(collect(folder, study, seeds[:1], arms), seeds[0]))
        log.write("run_finished", seconds=time.time() - about["started"])
        write_report(folder.path)
        return result
