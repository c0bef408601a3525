"""Reading the coordinator's messages: every field is checked for its type before it is used.

Raises `Refusal` with BAD_REQUEST or BAD_MODEL where a message is not what this site answers.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Message

from client.door import Asked
from client.policy import (
    BAD_CODEBOOK,
    BAD_MODEL,
    BAD_REQUEST,
    NOT_CONFIGURED,
    RUN_NAME,
    Refusal,
    check_run_name,
    check_study,
)
from client.site import Site
from common.bulk.opening import Direction, Transfer
from common.errors import UserError
from common.models.transfer import BadFolder, unpack_folder
from common.questions.codebook import Codebook
from common.questions.codebook_file import from_toml
from common.questions.joint import Layout
from common.strict import checked
from common.study import Study, parse_study
from common.transfer.manifest import BadPayload
from common.transfer.records import in_by_site

HASH = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Task:
    """What a train or evaluate message asks for."""

    run: str
    round: int
    first_step: int
    steps: int


def config(message: Message, record: str) -> ConfigRecord:
    records = message.content.config_records
    if record not in records:
        raise Refusal(BAD_REQUEST)
    return records[record]


def text(record: ConfigRecord, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise Refusal(BAD_REQUEST)
    return value


def count(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refusal(BAD_REQUEST)
    return value


def asked_in(message: Message, record: str) -> Asked:
    """For the audit log, which a malformed message reaches too: what is not as expected is left out."""
    fields = message.content.config_records.get(record, ConfigRecord())
    study, run, number = fields.get("hash", ""), fields.get("run", ""), fields.get("round", 0)
    return Asked(
        study if isinstance(study, str) and HASH.fullmatch(study) else "",
        run if isinstance(run, str) and RUN_NAME.fullmatch(run) else "",
        number if isinstance(number, int) else 0,
    )


def approved_study(site: Site, message: Message) -> Study:
    """The study in a configure message, if this site permits it."""
    record = config(message, "study")
    try:
        study = parse_study(json.loads(text(record, "json")), "the message")
    except (json.JSONDecodeError, UserError):
        raise Refusal(BAD_REQUEST) from None
    check_study(site.settings.policy, study, text(record, "hash"))
    return study


def known_study(site: Site, message: Message) -> Study:
    """The study that a train or evaluate message names: configured before, and still permitted."""
    digest = text(config(message, "round"), "hash")
    if not HASH.fullmatch(digest):
        raise Refusal(BAD_REQUEST)
    about = site.state / "studies" / digest / "study.json"
    if not about.exists():
        raise Refusal(NOT_CONFIGURED)
    study = parse_study(json.loads(about.read_text())["study"], str(about))
    check_study(site.settings.policy, study, digest)
    return study


def model_folder(site: Site, message: Message) -> Path | None:
    """The model folder in a configure message, kept at the site under its hash; None where none was sent."""
    if "model" not in message.content.array_records:
        return None
    digest = text(config(message, "study"), "model_sha256")
    if not HASH.fullmatch(digest):
        raise Refusal(BAD_REQUEST)
    try:
        return unpack_folder(message.content.array_records["model"], site.state / "models" / digest, digest)
    except BadFolder:
        raise Refusal(BAD_MODEL) from None


def codebook_in(message: Message) -> Codebook | None:
    """The codebook in a configure message; None where each site has its own."""
    if "codebook" not in message.content.config_records:
        return None
    try:
        return from_toml(text(config(message, "codebook"), "toml"), "the message")
    except UserError:
        raise Refusal(BAD_CODEBOOK) from None


def layout_in(message: Message) -> Layout | None:
    """The classes on which a count message asks for pairs; None where it asks for values."""
    if "layout" not in message.content.config_records:
        return None
    try:
        return checked(Layout, json.loads(text(config(message, "layout"), "json")), "the message")
    except (json.JSONDecodeError, UserError):
        raise Refusal(BAD_REQUEST) from None


def run_folder(site: Site, message: Message) -> Path:
    """Where this site keeps what it has of the run that a message names; the study is configured and permitted."""
    return site.state / "studies" / known_study(site, message).hash / "runs" / task_in(message).run


def shard_in_demand(message: Message) -> tuple[str, int]:
    """Whose shard a message wants, by the payload's hash, and which."""
    record = config(message, "wanted")
    return text(record, "sha256"), count(record, "number")


def bulk_transfer(site: Site, message: Message, direction: Direction, sha256: str) -> Transfer:
    """What a message asks this site to move by the bulk channel."""
    task = task_in(message)
    study = known_study(site, message).hash
    return Transfer(direction=direction, site=site.name, study=study, run=task.run, round=task.round, sha256=sha256)


def attempt_in(message: Message) -> int:
    """Which try of a round's secure sum a message is about."""
    return count(config(message, "sum"), "attempt")


def by_site_in(message: Message, record: str) -> dict[str, bytes]:
    try:
        return in_by_site(config(message, record))
    except BadPayload:
        raise Refusal(BAD_REQUEST) from None


def survivors_in(message: Message) -> list[str]:
    """The sites whose masked updates the coordinator has."""
    names = config(message, "sum").get("survivors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refusal(BAD_REQUEST)
    return [str(name) for name in names]


def update_in_demand(message: Message) -> str:
    """Hash of the update that a message wants as a whole."""
    sha256 = text(config(message, "wanted"), "sha256")
    if not HASH.fullmatch(sha256):
        raise Refusal(BAD_REQUEST)
    return sha256


def task_in(message: Message) -> Task:
    record = config(message, "round")
    return Task(
        run=check_run_name(text(record, "run")),
        round=count(record, "round"),
        first_step=count(record, "first_step"),
        steps=count(record, "steps"),
    )
