"""The one door: every reply of this site is built here, from an allow-list of typed records.

A reply is one of the record classes of `replies.py`; their fields are all that can leave, under names that stand in
this file (tensor names come from the coordinator's own model). Figures rest on at least
`Policy.minimum_patients` patients or do not leave. What goes wrong inside leaves as a number and a fixed
sentence; the exception itself goes to a log file that stays here. Each passage is written to the audit log
before the reply is handed over.
"""

import hashlib
import json
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client import audit, policy
from client.bulk import upload
from client.policy import Policy, Refusal, check_patients
from client.progress import Progress
from client.replies import (
    Acknowledged,
    Configured,
    Counted,
    Described,
    Evaluated,
    Handed,
    Held,
    Reply,
    Summarised,
    Trained,
    Uploaded,
)
from common.bulk.beat import Beat
from common.bulk.opening import ChannelRefused
from common.disk import named_disk_faults
from common.errors import UserError
from common.registry.registry import printed
from common.transfer.records import MODEL_MISSING, NO_CHANNEL, PAYLOAD_MISSING, SHARD, inline_shard, shard_record

REFUSALS = {
    policy.NOT_APPROVED: "this site has not approved the study",
    policy.NOT_THE_STUDY: "the study does not have the hash that the message claims",
    policy.TOO_FEW_PATIENTS: "too few patients at this site for a figure to leave",
    policy.BAD_REQUEST: "the message is not one that this site answers",
    policy.NOT_CONFIGURED: "this site has no model for the study yet: configure it first",
    policy.BAD_MODEL: "the model in the message is not whole",
    policy.SITE_CONFIGURATION: "this site's own configuration or data is at fault: see its error log",
    policy.INTERNAL: "the work failed at this site: see its error log",
    policy.BAD_CODEBOOK: "the codebook in the message is not whole, or not the one of this study at this site",
    policy.JOB_OUT_OF_MEMORY: "local training ran out of memory at this site",
    policy.JOB_ENDED: "local training ended at this site before it was done: see its job's log",
    policy.BUDGET_SPENT: "this round would cost more privacy than this site has left for the study",
    policy.LEDGER_BROKEN: "this site's privacy ledger has been changed: see the site's own copy",
    policy.RUN_REMOVED: "this site has removed the run's state: start the study as a new run",
    MODEL_MISSING: "this site has no model that the message's could be made from",
    PAYLOAD_MISSING: "this site has no such update that may leave",
    NO_CHANNEL: "this site was not told how to reach the bulk channel",
    policy.BULK_FAILED: "the bulk channel did not move the payload: see the site's error log",
}


@dataclass(frozen=True)
class Door:
    """Where a message is answered: the site's name, policy and the folder of its logs."""

    site: str
    policy: Policy
    state: Path


@dataclass(frozen=True)
class Asked:
    """What a passage in the audit log says about the question: study hash, run, round."""

    study: str = ""
    run: str = ""
    round: int = 0


def finite(value: float) -> float:
    if not math.isfinite(value):
        raise Refusal(policy.INTERNAL)
    return value


def records(reply: Reply, door: Door) -> RecordDict:
    """The allow-list: what of each reply leaves, and under which name.

    Raises:
        Refusal: too few patients behind a figure, or a figure that is not finite.
        BadUpdate: the update does not decode to a change of the model.
    """
    match reply:
        case Described(site):
            return RecordDict({"site": ConfigRecord({"name": site})})
        case Configured():
            check_patients(door.policy, reply.patients)
            sizes = {} if reply.private else {"patients": reply.patients, "questions": reply.questions}
            return RecordDict({"counts": MetricRecord(dict(sizes))})
        case Counted():
            check_patients(door.policy, reply.patients)
            return counted_records(reply, door.policy)
        case Evaluated():
            check_patients(door.policy, reply.patients)
            counts = {"patients": reply.patients, "questions": reply.questions, "right": reply.right}
            return RecordDict(
                {
                    "manifest": ConfigRecord({"round": reply.round}),
                    "counts": MetricRecord({**counts, "boxed": reply.boxed, "seconds": finite(reply.seconds)}),
                }
            )
        case Trained():
            check_patients(door.policy, reply.patients)
            check_update(reply, door)
            metrics: dict[str, int | float] = (
                {}
                if reply.epsilon is not None
                else {
                    "patients": reply.patients,
                    "questions": reply.questions,
                    "reward": finite(reply.reward),
                    "informative": finite(reply.informative),
                    "generating_s": finite(reply.generating_s),
                    "learning_s": finite(reply.learning_s),
                }
            )
            payload = reply.outbox.payload(reply.manifest.sha256)
            return RecordDict(
                {
                    "manifest": ConfigRecord({"round": reply.round, **reply.manifest.to_dict()}),
                    "metrics": MetricRecord(dict(metrics)),
                    **inline_shard(payload, reply.manifest, reply.inline_bytes),
                }
            )
        case Handed(outbox, sha256, number):
            return RecordDict({SHARD: shard_record(outbox.shard(sha256, number))})
        case Uploaded():
            return RecordDict({"manifest": ConfigRecord({"sha256": reply.transfer.sha256})})
        case Held(shards):
            return RecordDict({"held": ConfigRecord({"shards": shards})})
        case Acknowledged(number):
            return RecordDict({"manifest": ConfigRecord({"round": number})})


def check_update(reply: Trained, door: Door) -> None:
    """Decode the file that would leave, as the coordinator will: what is no change of this model does not leave.

    Raises:
        BadUpdate: it does not decode to a change of the model.
    """
    from common.update.chain import decode
    from common.update.payload import read_payload

    update = read_payload(reply.outbox.payload(reply.manifest.sha256), door.site)
    decode(reply.steps, reply.model, update, door.site)


def counted_records(reply: Counted, permitted: Policy) -> RecordDict:
    enough = pl.col("patients") >= permitted.minimum_patients
    cells = reply.cells.filter(enough) if reply.names else reply.cells.with_columns(pl.col("count") * enough)
    features = [printed(feature).model_dump(mode="json", exclude_defaults=True) for feature in reply.features]
    texts = {"cells": json.dumps(cells.select(reply.names).rows()), "features": json.dumps(features)}
    counts = Array(cells["count"].to_numpy().astype(np.int64))
    return RecordDict({"counts": ArrayRecord({"counts": counts}), "cells": ConfigRecord(dict(texts))})


def detail(reply: Reply, door: Door) -> str:
    """What the audit log says beside the digest."""
    match reply:
        case Configured():
            return f"codebook {reply.codebook}"
        case Trained(epsilon=epsilon) if epsilon is not None:
            return f"epsilon {epsilon:.4f} after it"
        case Trained():
            return f"update {reply.manifest.sha256}, {reply.manifest.size} bytes"
        case Handed(_, sha256, number):
            return f"shard {number} of update {sha256}"
        case Uploaded(outbox, transfer, _):
            return f"update {transfer.sha256}, {outbox.approved(transfer.sha256).size} bytes by the bulk channel"
        case Counted():
            held = reply.cells.filter((pl.col("count") > 0) & (pl.col("patients") < door.policy.minimum_patients))
            return f"{held.height} of {reply.cells.height} counts held back"
        case _:
            return ""


def weigh(content: RecordDict) -> tuple[int, str]:
    """Bytes and SHA-256 of the records as they are serialised."""
    size, total = 0, hashlib.sha256()
    for name, record in sorted(content.items()):
        total.update(name.encode())
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                size += len(array.data)
                total.update(f"{key}{array.dtype}{array.shape}".encode())
                total.update(array.data)
        else:
            data = record.deflate()
            size += len(data)
            total.update(data)
    return size, total.hexdigest()


def release(door: Door, asked: Asked, reply: Reply, message: Message) -> Message:
    """Let a reply out: check it, log it, hand it over. An upload comes after the log too, and before its answer."""
    content = records(reply, door)
    size, digest = weigh(content)
    kind = type(reply).__name__
    passage = audit.Passage(kind, asked.study, asked.run, asked.round, size, digest, detail(reply, door))
    audit.append(door.state / "audit.jsonl", passage)
    if isinstance(reply, Trained):
        reply.outbox.approve(reply.manifest, reply.round)
    if isinstance(reply, Uploaded):
        upload(reply.channel, reply.transfer, reply.outbox.whole(reply.transfer.sha256))
    return Message(content, reply_to=message)


def refuse(door: Door, asked: Asked, code: int, message: Message) -> Message:
    """Let a refusal out: its number and its fixed sentence."""
    text = REFUSALS[code]
    size, digest = len(text), hashlib.sha256(text.encode()).hexdigest()
    passage = audit.Passage("Refused", asked.study, asked.run, asked.round, size, digest)
    audit.append(door.state / "audit.jsonl", passage)
    return Message(Error(code, text), reply_to=message)


def summary_text(summary: Summarised, least: int) -> str:
    """Counts are rounded down to a multiple of the minimum, so that the difference of two does not tell a few patients
    either. What rests on fewer is held back, an outcome's answer by name too: it may be a value that is rare."""
    lines = [f"Counts are rounded down to a multiple of {least}.", f"patients: {summary.patients // least * least}"]
    for (what,), part in summary.cells.group_by("what", maintain_order=True):
        told = part.filter(pl.col("patients") >= least)
        for name, count, patients in told.select("name", "count", "patients").iter_rows():
            behind = f" questions about {patients // least * least} patients" if what == "task" else " patients"
            lines.append(f"{what}: {name}: {count // least * least}{behind}")
        if told.height < part.height:
            few = part.filter(pl.col("patients") < least)["name"].to_list()
            which = f"{len(few)} answers" if what == "outcome" else ", ".join(few)
            lines.append(f"{what}: withheld, fewer than {least} patients: {which}")
    return "\n".join(lines) + "\n"


def share(door: Door, study: str, summary: Summarised, path: Path) -> None:
    """Write a summary for others to a file, and first into the audit log.

    Raises:
        UserError: the site has too few patients to tell anything.
    """
    least = door.policy.minimum_patients
    if summary.patients < least:
        raise UserError(
            f"Site {door.site}: fewer than {least} patients, too few for a summary to leave.",
            "Ask who keeps the site's policy.minimum_patients.",
        )
    data = f"site: {door.site}\n{summary_text(summary, least)}".encode()
    few = summary.cells.filter(pl.col("patients") < least).height
    held = f"{few} of {summary.cells.height} counts held back"
    passage = audit.Passage("Summarised", study, "", 0, len(data), hashlib.sha256(data).hexdigest(), held)
    audit.append(door.state / "audit.jsonl", passage)
    with named_disk_faults(path):
        path.write_bytes(data)


def beat_of(door: Door, progress: Progress) -> Beat | None:
    """What a heartbeat says, written to the audit log first; None where the site's policy is not to tell."""
    if not door.policy.tell_progress:
        return None
    beat = Beat(
        site=door.site, study=progress.study, run=progress.run, round=progress.round,
        step=progress.step, steps=progress.steps,
    )  # fmt: skip
    data = beat.model_dump_json().encode()
    digest, told = hashlib.sha256(data).hexdigest(), f"step {beat.step} of {beat.steps}"
    passage = audit.Passage("Progress", beat.study, beat.run, beat.round, len(data), digest, told)
    audit.append(door.state / "audit.jsonl", passage)
    return beat


def keep_traceback(door: Door) -> None:
    door.state.mkdir(parents=True, exist_ok=True)
    with (door.state / "errors.log").open("a", encoding="utf-8") as file:
        file.write(f"--- {datetime.now(UTC).isoformat()}\n{traceback.format_exc()}\n")


def answer(door: Door, asked: Asked, message: Message, work: Callable[[], Reply]) -> Message:
    """Do the work behind a message and let its outcome through the door.

    Whatever is raised inside may hold a patient's values in its text, and Flower would send that text to the
    coordinator; so here, and only here, every exception is caught.
    """
    try:
        return release(door, asked, work(), message)
    except Refusal as refusal:
        return refuse(door, asked, refusal.code, message)
    except ChannelRefused:
        keep_traceback(door)
        return refuse(door, asked, policy.BULK_FAILED, message)
    except UserError:
        keep_traceback(door)
        return refuse(door, asked, policy.SITE_CONFIGURATION, message)
    except Exception:
        keep_traceback(door)
        return refuse(door, asked, policy.INTERNAL, message)
