"""What a reply must be beyond its types: an answer to what was asked, of an approved study, whole and not too often."""

import json
from pathlib import Path
from typing import get_args

from client.allowed import is_count
from client.audit import whole_lines
from client.door import Asked, Door
from client.policy import (
    NOT_ALLOWED,
    RUN_NAME,
    TOO_MANY_ANSWERS,
    Refusal,
    check_approved,
    check_patients,
)
from client.progress import Progress
from client.replies import (
    Acknowledged,
    Agreed,
    Configured,
    Dealt,
    Described,
    Evaluated,
    Held,
    Keyed,
    Masked,
    Opened,
    Reply,
    Trained,
    Uploaded,
)
from common.transfer.manifest import is_hash, manifest_of

MOST_ANSWERS = 8
"""Different answers that one round of one run gets, of each kind; the same one may leave as often as it is asked."""


def check_update(reply: Trained, door: Door) -> None:
    """Decode the file that would leave, as the coordinator will: what is no change of this model does not leave, nor
    what rides along beside the numbers.

    Raises:
        Refusal: NOT_ALLOWED.
    """
    from common.update.chain import decode
    from common.update.form import check_file, check_written
    from common.update.payload import read_payload
    from common.update.tensors import BadUpdate

    place = place_of(reply)
    try:
        update = read_payload(place, door.site)
        check_file(place, update, door.site)
        decode(reply.steps, reply.model, update, door.site)
        check_written(reply.steps, reply.model, update, door.site)
    except BadUpdate as fault:
        raise Refusal(NOT_ALLOWED, "the update is not the study's chain over a change of the round's model") from fault


def place_of(reply: Trained | Masked) -> Path:
    """The file that would leave.

    Raises:
        Refusal: NOT_ALLOWED where it is not that of the manifest.
    """
    place = reply.outbox.payload(reply.manifest.sha256)
    known = is_hash(reply.manifest.sha256) and place.exists()
    if not known or manifest_of(place, reply.transfer.shard_bytes) != reply.manifest:
        raise Refusal(NOT_ALLOWED, "the manifest is not that of the update")
    return place


def check_masked(reply: Masked, door: Door) -> None:
    """What leaves has a whole number for each value of the update, under the same names, and nothing beside.

    Raises:
        Refusal: NOT_ALLOWED.
    """
    import torch

    from common.update.form import check_file
    from common.update.payload import read_payload
    from common.update.tensors import BadUpdate, check_like

    place = place_of(reply)
    try:
        update, sent = read_payload(reply.withheld, door.site), read_payload(place, door.site)
        check_file(place, sent, door.site)
        check_like(sent, update, door.site, dict.fromkeys(update, torch.int32))
    except BadUpdate as fault:
        raise Refusal(NOT_ALLOWED, "the masked update has not the form of the update") from fault


def check_kind(reply: Reply, door: Door, asked: Asked) -> None:
    """Refuse what is no reply that the door knows, and all replies about a study that is not approved today.

    Raises:
        Refusal: NOT_ALLOWED, NOT_APPROVED or APPROVAL_ENDED.
    """
    # Exactly these classes: the name of any other would stand in the audit log.
    if type(reply) not in get_args(Reply):
        raise Refusal(NOT_ALLOWED, "the reply is of no kind that the door knows")
    if not isinstance(reply, Described):
        check_approved(door.policy, asked.study)


def check_sense(reply: Reply, door: Door, asked: Asked) -> None:
    """Refuse a reply that is no answer to what was asked, whose parts do not fit each other, or that rests on too few.

    Raises:
        Refusal: NOT_ALLOWED or TOO_FEW_PATIENTS.
    """
    if isinstance(reply, Configured | Trained | Evaluated | Masked):
        check_patients(door.policy, reply.patients)
    match reply:
        case Described(site):
            fits = site == door.site
        case Configured():
            fits = is_hash(reply.codebook) and reply.patients <= reply.questions
        case Trained():
            fits = reply.round == asked.round and reply.patients <= reply.questions
        case Evaluated():
            right = max(reply.right, reply.boxed)
            fits = reply.round == asked.round and reply.patients <= reply.questions and right <= reply.questions
        case Keyed() | Masked() | Agreed():
            fits = reply.round == asked.round
        case Dealt():
            fits = reply.round == asked.round and reply.sealed.keys() <= training_sites(door, asked)
        case Opened():
            of, both = reply.seeds.keys() | reply.mask_keys.keys(), reply.seeds.keys() & reply.mask_keys.keys()
            fits = reply.round == asked.round and of <= training_sites(door, asked) and not both
        case Uploaded(transfer=moved):
            named = (moved.site, moved.study, moved.run, moved.round)
            fits = named == (door.site, asked.study, asked.run, asked.round)
        case Held():
            fits = reply.shards <= reply.of
        case Acknowledged(number):
            fits = number == asked.round
        case _:
            fits = True
    if not fits:
        raise Refusal(NOT_ALLOWED, f"{type(reply).__name__} does not answer what was asked")


def training_sites(door: Door, asked: Asked) -> set[str]:
    """Of the study that was asked about."""
    about = door.state / "studies" / asked.study / "study.json"
    return set(json.loads(about.read_text())["study"]["sites"]["train"])


def check_repeats(door: Door, asked: Asked, kind: str, digest: str) -> None:
    """Refuse one more different answer to a round: many of them, each from a model that the coordinator chose, would
    tell together what one does not.

    Raises:
        Refusal: TOO_MANY_ANSWERS.
    """
    if kind not in ("Trained", "Learned", "Evaluated"):
        return
    place = (kind, asked.study, asked.run, asked.round)
    entries = map(json.loads, whole_lines(door.state / "audit.jsonl"))
    given = {e["sha256"] for e in entries if (e["kind"], e["study"], e["run"], e["round"]) == place}
    if len(given - {digest}) >= MOST_ANSWERS:
        raise Refusal(TOO_MANY_ANSWERS)


def check_beat(progress: Progress, door: Door) -> None:
    """Refuse a note about anything but the steps of a round that this site was asked for.

    Raises:
        Refusal: NOT_ALLOWED, NOT_APPROVED or APPROVAL_ENDED.
    """
    numbers = (progress.round, progress.step, progress.steps)
    named = is_hash(progress.study) and RUN_NAME.fullmatch(progress.run) is not None
    if not named or not all(map(is_count, numbers)):
        raise Refusal(NOT_ALLOWED, "the note of progress has another form")
    check_approved(door.policy, progress.study)
    folder = door.state / "studies" / progress.study
    if not (folder / "study.json").exists() or not (folder / "runs" / progress.run).is_dir():
        raise Refusal(NOT_ALLOWED, "the note of progress is about no run that this site takes part in")
    rounds = json.loads((folder / "study.json").read_text())["study"]["rounds"]
    if progress.steps != rounds["local_steps"] or not 1 <= progress.round <= rounds["rounds"]:
        raise Refusal(NOT_ALLOWED, "the note of progress is about no round of the study")
    if progress.step > progress.steps:
        raise Refusal(NOT_ALLOWED, "the note of progress is about more steps than a round has")
