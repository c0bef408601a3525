"""The one door: every reply of this site is built here, from an allow-list of typed records.

A reply is one of the record classes of `replies.py`; their fields are all that can leave, under names that stand in
this file (tensor names come from the coordinator's own model). Figures rest on at least
`Policy.minimum_patients` patients or do not leave. The finished message is held against the allow-list once more
(`allowed.py`). What goes wrong inside leaves as a number and a fixed sentence; the exception itself goes to a log file
that stays here. Each passage is written to the audit log before the reply is handed over.
"""

import hashlib
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import polars as pl
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client import audit, policy
from client.allowed import check_allowed
from client.bulk import upload
from client.cells import counted_records
from client.door import Asked, Door
from client.policy import NOT_ALLOWED, Refusal, check_patients
from client.progress import Progress
from client.replies import (
    Acknowledged,
    Agreed,
    Configured,
    Counted,
    Dealt,
    Described,
    Evaluated,
    Handed,
    Held,
    Keyed,
    Learned,
    Masked,
    Opened,
    Reply,
    Trained,
    Uploaded,
)
from client.sense import check_beat, check_kind, check_masked, check_repeats, check_sense, check_update
from common.bulk.beat import Beat
from common.bulk.check import Greeting
from common.bulk.opening import ChannelRefused
from common.disk import no_room
from common.errors import UserError
from common.transfer.records import (
    MODEL_MISSING,
    NO_CHANNEL,
    PAYLOAD_MISSING,
    SHARD,
    by_site,
    inline_shard,
    shard_record,
)
from common.versions import versions

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
    policy.NOT_ALLOWED: "what the work made is not what may leave this site: see the site's audit log",
    policy.APPROVAL_ENDED: "this site's approval of the study has ended",
    policy.TOO_MANY_ANSWERS: "this site has given as many different answers to the round as it gives",
    policy.LOG_CLOSED: "this site cannot write its audit log, and nothing leaves without",
    policy.DISK_FULL: "this site's disk is full",
    policy.RUN_REMOVED: "this site has removed the run's state: start the study as a new run",
    MODEL_MISSING: "this site has no model that the message's could be made from",
    PAYLOAD_MISSING: "this site has no such update that may leave",
    NO_CHANNEL: "this site was not told how to reach the bulk channel",
    policy.SUM_REQUIRED: "this site sends its updates in a secure sum alone, and the study has none",
    policy.SUM_IDENTITY: "the study does not name this site's own key for its secure sum",
    policy.SUM_KEYS: "in the secure sum a key, a share or a signature is not of the site that the study names",
    policy.SUM_OLD: "this site has gone beyond that secure sum, or has opened one of these updates already",
    policy.SUM_CHANGED: "this site has agreed to other keys, shares or survivors in this secure sum",
    policy.SUM_FEW: "the secure sum would be of fewer sites than the study allows",
    policy.BULK_FAILED: "the bulk channel did not move the payload: see the site's error log",
}


def records(reply: Reply, door: Door) -> RecordDict:
    """The allow-list: what of each reply leaves, and under which name.

    Raises:
        Refusal: an update or counts that are not what they should be, or too few patients behind the counts.
    """
    match reply:
        case Described(site):
            return RecordDict({"site": ConfigRecord({"name": site})})
        case Configured():
            sizes = {} if reply.private else {"patients": reply.patients, "questions": reply.questions}
            return RecordDict({"counts": MetricRecord(dict(sizes))})
        case Counted():
            check_patients(door.policy, reply.patients)
            return counted_records(reply, door.policy)
        case Evaluated():
            counts = {"patients": reply.patients, "questions": reply.questions, "right": reply.right}
            return RecordDict(
                {
                    "manifest": ConfigRecord({"round": reply.round}),
                    "counts": MetricRecord({**counts, "boxed": reply.boxed, "seconds": reply.seconds}),
                }
            )
        case Trained():
            check_update(reply, door)
            metrics: dict[str, int | float] = (
                {}
                if reply.epsilon is not None
                else {
                    "patients": reply.patients,
                    "questions": reply.questions,
                    "reward": reply.reward,
                    "informative": reply.informative,
                    "generating_s": reply.generating_s,
                    "learning_s": reply.learning_s,
                }
            )
            told = RecordDict({"metrics": MetricRecord(dict(metrics))})
            told.update(number_of(reply) if isinstance(reply, Learned) else payload_of(reply))
            return told
        case Keyed():
            return RecordDict({**number_of(reply), "sum": ConfigRecord({"advertised": reply.advertised})})
        case Dealt():
            return RecordDict({**number_of(reply), "sealed": by_site(reply.sealed)})
        case Masked():
            check_masked(reply, door)
            return RecordDict({**payload_of(reply)})
        case Agreed():
            return RecordDict({**number_of(reply), "sum": ConfigRecord({"signature": reply.signature})})
        case Opened():
            shares = {"seeds": by_site(reply.seeds), "mask_keys": by_site(reply.mask_keys)}
            return RecordDict({**number_of(reply), **shares})
        case Handed(outbox, sha256, number):
            return RecordDict({SHARD: shard_record(outbox.shard(sha256, number))})
        case Uploaded():
            return RecordDict({"manifest": ConfigRecord({"sha256": reply.transfer.sha256})})
        case Held(shards):
            return RecordDict({"held": ConfigRecord({"shards": shards})})
        case Acknowledged(number):
            return RecordDict({"manifest": ConfigRecord({"round": number})})


def number_of(reply: Learned | Keyed | Dealt | Agreed | Opened) -> dict[str, ConfigRecord]:
    """The round that a reply answers, and no payload."""
    return {"manifest": ConfigRecord({"round": reply.round})}


def payload_of(reply: Trained | Masked) -> dict[str, ConfigRecord | ArrayRecord]:
    """The round and the payload's manifest; the payload too, where it is small."""
    payload = reply.outbox.payload(reply.manifest.sha256)
    return {
        "manifest": ConfigRecord({"round": reply.round, **reply.manifest.to_dict()}),
        **inline_shard(payload, reply.manifest, reply.transfer.inline_bytes),
    }


def detail(reply: Reply, door: Door) -> str:
    """What the audit log says beside the digest."""
    match reply:
        case Configured():
            return f"codebook {reply.codebook}{f'; {reply.changed}' if reply.changed else ''}"
        case Learned(epsilon=epsilon):
            spent = "" if epsilon is None else f"epsilon {epsilon:.4f} after it, "
            return f"{spent}update {reply.manifest.sha256} withheld"
        case Masked():
            return f"masked update {reply.manifest.sha256}, {reply.manifest.size} bytes"
        case Opened():
            return f"shares that open the sum of {len(reply.seeds)} sites, without {len(reply.mask_keys)}"
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
    check_kind(reply, door, asked)
    content, kind = records(reply, door), type(reply).__name__
    check_allowed(kind, content, withheld(reply))
    check_sense(reply, door, asked)
    size, digest = weigh(content)
    check_repeats(door, asked, kind, digest)
    passage = audit.Passage(kind, asked.study, asked.run, asked.round, size, digest, detail(reply, door))
    audit.append(door.state / "audit.jsonl", passage)
    if isinstance(reply, Trained | Masked) and not isinstance(reply, Learned):
        reply.outbox.approve(reply.manifest, reply.round)
    if isinstance(reply, Uploaded):
        upload(reply.channel, reply.transfer, reply.outbox.whole(reply.transfer.sha256))
    return Message(content, reply_to=message)


def withheld(reply: Reply) -> bool:
    """Whether the study has patient-level privacy, with which no figure leaves."""
    match reply:
        case Configured():
            return reply.private
        case Trained():
            return reply.epsilon is not None
    return False


def log_refusal(door: Door, asked: Asked, code: int, rule: str) -> str:
    """Returns the refusal's fixed sentence."""
    text = REFUSALS[code]
    size, digest = len(text), hashlib.sha256(text.encode()).hexdigest()
    why = f"{code}: {rule}" if rule else str(code)
    audit.append(
        door.state / "audit.jsonl", audit.Passage("Refused", asked.study, asked.run, asked.round, size, digest, why)
    )
    return text


def refuse(door: Door, asked: Asked, refusal: Refusal, message: Message) -> Message:
    """Let a refusal out: its number and its fixed sentence. One with another number was made elsewhere."""
    code, rule = (refusal.code, refusal.rule) if refusal.code in REFUSALS else (policy.INTERNAL, "")
    return Message(Error(code, log_refusal(door, asked, code, rule)), reply_to=message)


def beat_of(door: Door, progress: Progress) -> Beat | None:
    """What a heartbeat says, written to the audit log first; None where the site's policy is not to tell, or where
    the note is not about steps that this site takes."""
    if not door.policy.tell_progress:
        return None
    try:
        check_beat(progress, door)
    except Refusal as refusal:
        log_refusal(door, Asked(), refusal.code, refusal.rule)
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


def greeting_of(door: Door, probe: int) -> Greeting:
    """What a site that asks whether its key is known tells of itself, written to the audit log first: its name and the
    versions of its software.

    Args:
        probe: bytes without meaning that go with it.
    """
    greeting = Greeting(site=door.site, versions=versions(), probe=probe)
    data = greeting.model_dump_json().encode()
    passage = audit.Passage("Greeting", "", "", 0, len(data), hashlib.sha256(data).hexdigest(), "name and versions")
    audit.append(door.state / "audit.jsonl", passage)
    return greeting


def keep_traceback(door: Door) -> None:
    door.state.mkdir(parents=True, exist_ok=True)
    with (door.state / "errors.log").open("a", encoding="utf-8") as file:
        file.write(f"--- {datetime.now(UTC).isoformat()}\n{traceback.format_exc()}\n")


def answer(door: Door, asked: Asked, message: Message, work: Callable[[], Reply]) -> Message:
    """Do the work behind a message and let its outcome through the door."""
    try:
        return outcome(door, asked, message, work)
    except OSError as error:
        # The logs cannot be written. The text, which has paths, stays in this process's own output, which a node keeps
        # in a file that may be on the same disk.
        with suppress(OSError):
            traceback.print_exc(file=sys.stderr)
        code = policy.DISK_FULL if no_room(error) else policy.LOG_CLOSED
        return Message(Error(code, REFUSALS[code]), reply_to=message)


def outcome(door: Door, asked: Asked, message: Message, work: Callable[[], Reply]) -> Message:
    """Whatever is raised inside may hold a patient's values in its text, and Flower would send that text to the
    coordinator; so here, and only here, every exception is caught, an end of the process (SystemExit) too.

    Raises:
        OSError: a log cannot be written.
    """
    try:
        return release(door, asked, work(), message)
    except Refusal as refusal:
        if refusal.code == NOT_ALLOWED:
            keep_traceback(door)
        return refuse(door, asked, refusal, message)
    except ChannelRefused:
        keep_traceback(door)
        return refuse(door, asked, Refusal(policy.BULK_FAILED), message)
    except UserError:
        keep_traceback(door)
        return refuse(door, asked, Refusal(policy.SITE_CONFIGURATION), message)
    except (Exception, SystemExit) as error:
        keep_traceback(door)
        return refuse(door, asked, Refusal(policy.DISK_FULL if no_room(error) else policy.INTERNAL), message)
