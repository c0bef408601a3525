"""Can this machine carry a study: disk, memory, one local step for nothing, and how long a round would take."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from client.checking import model_at_hand, training_questions
from client.greeting import Line
from client.messages import Task
from client.policy import Refusal
from client.preflight import Finding, looked
from client.site import Site
from client.training import SiteStudy
from common.errors import UserError
from common.grpo.local import LocalResult
from common.launcher import ZERO_STAGES
from common.model import BUILT_IN
from common.models.builtin import write_untrained
from common.models.shape import Shape, read_config, shape_of
from common.plan import Sharding, memory, optimiser_bytes
from common.questions.codebook_file import given_codebook
from common.registry.registry import load_registry
from common.study import Study

FOLDER = "dry-step"
"""Under the site's own folder. It stays where the step failed, with the job's log."""
PROCESSES = re.compile(r"--(?:num_processes|nproc[-_]per[-_]node)[= ](\d+)")
ROOM = 1.2
"""Share of a round's deadline, or of a memory, that an estimate from shapes may be wrong by."""


def questions_of(site: Site, study: Study) -> pl.DataFrame:
    return training_questions(load_registry(site.registry), study, given_codebook(study.questions))


def on_this_machine(site: Site, study: Study) -> tuple[Study, int, Sharding]:
    """The study as this machine's settings would run it, processes that train, and what they share out."""
    settings = site.settings
    given = study.simulation.model_copy(update={"launcher": settings.launcher, "vllm": settings.vllm})
    study = study.model_copy(update={"simulation": given})
    if settings.launcher is None:
        return study, 1, "none"
    named = PROCESSES.search(settings.launcher)
    processes = int(named[1]) if named else 1
    stage = next((number for word, number in ZERO_STAGES.items() if word in settings.launcher), None)
    return study, processes, "none" if stage is None else "ZeRO-2" if stage == 2 else "ZeRO-3"


def of_memory(site: Site, study: Study, shape: Shape) -> Finding | str:
    """The plan's estimate against what is here: of the smallest GPU, or the main memory where there is none."""
    planned, processes, sharding = on_this_machine(site, study)
    needed = memory(planned, shape, processes, sharding)["peak"]
    gpus = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    if gpus and processes > len(gpus):
        return Finding("memory", f"the launcher starts {processes} processes on {len(gpus)} GPUs.",
                       "Give each a GPU: lower its number of processes.", stops=True)  # fmt: skip
    has = min(gpus) if gpus else main_memory() // processes
    where = f"each of {len(gpus)} GPUs" if gpus else "main memory (no GPU here), for each process"
    told = f"about {size(needed)} at the longest prompts, of {size(has)} on {where}"
    if needed > ROOM * has:
        return Finding("memory", f"{told}: too little.",
                       "Train on more GPUs with {zero2} or {zero3} in client.launcher, or lower grpo.groups_at_once.",
                       stops=True)  # fmt: skip
    if ROOM * needed > has:
        return Finding("memory", f"{told}: it may not suffice.", "Look at the dry step.")
    return f"{told}."


def disk_needed(site: Site, study: Study, shape: Shape) -> int:
    """Bytes that a run keeps at most: two rounds' optimiser states, the round's model twice (as it comes and as it
    is), the update; the model and the trained one again, where training is a job."""
    job = 2 * shape.down_bytes if site.settings.launcher is not None else 0
    return 2 * optimiser_bytes(study, shape) + 2 * shape.down_bytes + shape.up_bytes + job


def main_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def of_disk(site: Site, needed: int) -> Finding | str:
    site.state.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(site.state).free
    told = f"{size(free)} free at {site.state}, a run keeps about {size(needed)}"
    if free < needed:
        return Finding("disk", f"{told}: too little.", "Free some, or give --state a folder elsewhere.", stops=True)
    return f"{told}."


def dry_step(site: Site, study: Study, model: Path, questions: pl.DataFrame, folder: Path) -> LocalResult:
    """One local step, as a round would take it, in a folder that no round sees.

    Raises:
        UserError: it ended before it was done.
    """
    alone = SiteStudy(replace(site, state=folder, bulk=None), study)
    alone.folder.mkdir(parents=True)
    questions.write_parquet(alone.folder / "train.parquet")
    (alone.folder / "study.json").write_text(json.dumps({"model": str(model)}), encoding="utf-8")
    run = alone.folder / "runs" / FOLDER
    try:
        return alone.learn(Task(FOLDER, round=1, first_step=0, steps=1), run, 0, FOLDER)
    except Refusal as refusal:
        raise UserError(
            f"One local step ended with refusal {refusal.code} (docs/site_operator.md).", f"See {run / 'job' / 'log'}."
        ) from None
    except torch.OutOfMemoryError:
        raise UserError(
            "One local step ran out of the GPU's memory.", "Lower grpo.groups_at_once, or train on more GPUs."
        ) from None


def of_time(study: Study, shape: Shape, step_s: float, line: Line | None, untrained: bool) -> Finding | str:
    """Of one round. `untrained`: the step's model answers at the full length, as a trained one rarely does."""
    parts = {f"training {study.rounds.local_steps} x {step_s:.1f} s": study.rounds.local_steps * step_s}
    if line is not None:
        parts[f"model down, {size(shape.down_bytes)} at most"] = shape.down_bytes / line.down / 1e6
        parts[f"update up, {size(shape.up_bytes)} at most"] = shape.up_bytes / line.up / 1e6
    total = sum(parts.values())
    spelled = "; ".join(f"{name}: {duration(seconds)}" for name, seconds in parts.items())
    told = f"about {duration(total)} without evaluation ({spelled})"
    deadline = study.rounds.deadline_s
    if total > deadline:
        stops = not untrained and total > ROOM * deadline
        return Finding("round", f"{told}, but rounds.deadline_s = {deadline:.0f}.",
                       "Ask the coordinator for a later deadline or fewer local_steps.", stops)  # fmt: skip
    return f"{told}."


def size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def machine(site: Site, study: Study, line: Line | None) -> Iterator[Finding]:
    """Every look in turn. Nothing of it leaves."""
    folder, model = site.state / FOLDER, model_at_hand(site, study)
    if model is None and study.model.base != BUILT_IN:
        yield Finding("model", f"there is no folder of {study.model.base} here: memory and time are not looked at.",
                      "Name its folder under [client.models].")  # fmt: skip
        return
    shutil.rmtree(folder, ignore_errors=True)
    questions, untrained = questions_of(site, study), model is None
    if model is None:
        model = folder / "model"
        write_untrained(study, questions["prompt"].to_list(), model)
    shape = shape_of(study, read_config(study, model))
    yield looked("disk", lambda: of_disk(site, disk_needed(site, study, shape)))
    fits = looked("memory", lambda: of_memory(site, study, shape))
    yield fits
    if fits.stops:
        return
    try:
        result = dry_step(site, study, model, questions, folder)
    except UserError as error:
        yield Finding("dry step", error.what, error.remedy, stops=True)
        return
    shutil.rmtree(folder)
    step_s = sum(result.seconds.values())
    with_what = "an untrained model of its shape, as the built-in one is not here yet" if untrained else "the model"
    yield Finding("dry step", f"{step_s:.1f} s, with {with_what}.")
    yield looked("round", lambda: of_time(study, shape, step_s, line, untrained))
