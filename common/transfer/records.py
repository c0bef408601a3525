"""Shards and bytes by site as Flower's records, and the refusals about payloads that both ends know."""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.transfer.manifest import BadPayload, Manifest

MODEL_MISSING = 1101
"""The site has neither the round's model nor what it was to be made from."""
PAYLOAD_MISSING = 1102
"""The site has no such payload: it was never approved to leave, or was acknowledged and deleted."""
NO_CHANNEL = 1103
"""The site was not told how to reach the bulk channel."""

SHARD = "shard"


def shard_record(data: bytes) -> ArrayRecord:
    return ArrayRecord({SHARD: Array("uint8", (len(data),), "raw", data)})


def shard_in(content: RecordDict) -> bytes:
    """Raises: BadPayload where the message holds no shard."""
    records = content.array_records
    if SHARD not in records or SHARD not in records[SHARD]:
        raise BadPayload("the message holds no shard")
    return records[SHARD][SHARD].data


def inline_shard(path: Path, manifest: Manifest, limit: int) -> dict[str, ArrayRecord]:
    """A whole payload as a message's only shard, where it is not above `limit` bytes; nothing where it is."""
    return {SHARD: shard_record(path.read_bytes())} if manifest.size <= limit else {}


def by_site(values: Mapping[str, bytes]) -> ConfigRecord:
    """Some bytes for each of several sites."""
    return ConfigRecord({"sites": list(values), "values": list(values.values())})


def in_by_site(record: Mapping[str, object]) -> dict[str, bytes]:
    """What `by_site` made.

    Raises:
        BadPayload: it is not such a record, or names a site twice.
    """
    sites, values = record.get("sites"), record.get("values")
    if not isinstance(sites, list) or not isinstance(values, list) or len(sites) != len(values):
        raise BadPayload("there are no bytes by site")
    found = {site: value for site, value in zip(sites, values, strict=True) if isinstance(site, str)}
    if len(found) != len(sites) or not all(isinstance(value, bytes) for value in values):
        raise BadPayload("there are no bytes by site")
    return found
