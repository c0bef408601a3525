"""Models on their way in: shards of a payload in a run's folder, until they are whole.

Nothing heavy is imported here: a process that takes in a shard is started for that message alone.
"""

from pathlib import Path

from flwr.app import Message

from client.bulk import Channel, download
from client.messages import config, count
from client.policy import BAD_MODEL, BAD_REQUEST, Refusal
from client.replies import Held
from common.bulk.opening import Transfer
from common.lock import only_one
from common.transfer.incoming import append_shard
from common.transfer.manifest import BadPayload, Manifest, manifest_from
from common.transfer.records import SHARD, shard_in


def inbox(run: Path) -> Path:
    return run / "inbox"


def payload_place(run: Path, sha256: str) -> Path:
    return inbox(run) / f"{sha256}.payload"


def announced(message: Message) -> Manifest:
    """Raises: Refusal(BAD_REQUEST)."""
    try:
        return manifest_from(config(message, "payload"))
    except BadPayload:
        raise Refusal(BAD_REQUEST) from None


def number_of(message: Message) -> int | None:
    """Number of the shard in a message; None where it only asks how many are here."""
    return count(config(message, "payload"), "number") if SHARD in message.content.array_records else None


def take_download(run: Path, message: Message, channel: Channel, transfer: Transfer) -> Held:
    """Fetch the payload that a message names by the bulk channel, if it is not here.

    Args:
        run: the run's folder.
        transfer: of this payload, as the coordinator announced it.

    Raises:
        Refusal: BAD_REQUEST for no manifest, BAD_MODEL for other bytes than its.
        ChannelRefused: the coordinator does not give it.
    """
    manifest = announced(message)
    place = payload_place(run, manifest.sha256)
    place.parent.mkdir(parents=True, exist_ok=True)
    with only_one(inbox(run) / "lock"):
        try:
            if not place.exists():
                download(channel, transfer, manifest, place)
        except BadPayload:
            raise Refusal(BAD_MODEL) from None
    return Held(len(manifest.shards), len(manifest.shards))


def take_shard(run: Path, message: Message) -> Held:
    """The shard in a message, if it is the next one; else nothing changes. The answer says how many are here.

    Args:
        run: the run's folder.

    Raises:
        Refusal: BAD_REQUEST for no manifest, BAD_MODEL for bytes that are not the shard's.
    """
    manifest = announced(message)
    place = payload_place(run, manifest.sha256)
    with only_one(inbox(run) / "lock"):
        if place.exists():
            return Held(len(manifest.shards), len(manifest.shards))
        number = number_of(message)
        try:
            data = b"" if number is None else shard_in(message.content)
            return Held(append_shard(place, manifest, number, data), len(manifest.shards))
        except BadPayload:
            raise Refusal(BAD_MODEL) from None
