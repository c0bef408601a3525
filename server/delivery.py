"""Bringing the round's model to a site: by its hash where the site has it, as the difference to the model before, or
whole.

    outgoing/
      holds.json                     which model each site was seen to have
      SHA256-whole.safetensors       the model
      SHA256-from-SHA256.safetensors what turns another model into it (common/update/payload.py)

What is noted here may be wrong, since a site may have lost its folder: a site that cannot make the model out of what
it is sent says so, and is sent the next larger thing.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from common.federation import Transfer
from common.transfer.manifest import Manifest, manifest_of, read_shard
from common.transfer.records import MODEL_MISSING, NO_CHANNEL, SHARD, inline_shard, shard_record
from common.update.payload import difference, fits
from common.update.tensors import BadUpdate, State, byte_count, sha256
from server.bulk_route import BulkRoute
from server.conversation import Request, Talk
from server.exchange import RoundContext
from server.round_store import write_state
from server.run_folder import EventLog, read_json, write_json

PATIENCE_S = 300.0
"""An answer about one shard that takes longer is taken for lost: Flower itself reports most losses after 180 s."""


@dataclass(frozen=True)
class Parcel:
    """What is sent for a site to have the model."""

    how: str
    """`hash`, `difference` or `whole`, as it stands in the event log."""
    base: str = ""
    """SHA-256 of the model that the site must have already."""
    path: Path | None = None


class Delivery:
    """The model that sites are to work with now, and the ways in which each may get it.

    Attributes:
        model: its SHA-256 (common/update/tensors.py).
        sent: bytes of payloads that went down since `announce`.
    """

    def __init__(self, folder: Path, spec: Transfer, log: EventLog, bulk: BulkRoute | None = None) -> None:
        """`bulk`: the way that large payloads take, up as well as down; all travel in messages where there is none."""
        self.folder, self.spec, self.log, self.bulk = folder, spec, log, bulk
        self.notes = folder / "holds.json"
        self.holds: dict[str, str] = read_json(self.notes) if self.notes.exists() else {}
        self.model, self.sent = "", 0

    def announce(self, model: State, base: State | None = None) -> None:
        """From now on this model is meant.

        Args:
            base: the model before; sites that have it are sent the difference, where that is smaller.
        """
        self.model, self.state, self.sent = sha256(model), model, 0
        for old in self.folder.glob("*.safetensors"):
            if not old.name.startswith(self.model):
                old.unlink()
        if base is None or not fits(base, model) or sha256(base) not in self.holds.values():
            return
        place = self.difference_from(sha256(base))
        if not place.exists() and byte_count(change := difference(base, model)) < byte_count(model):
            write_state(place, change)

    def end(self) -> None:
        """A run that is done sends no more models."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def difference_from(self, base: str) -> Path:
        return self.folder / f"{self.model}-from-{base}.safetensors"

    def whole(self) -> Path:
        place = self.folder / f"{self.model}-whole.safetensors"
        if not place.exists():
            write_state(place, self.state)
        return place

    def parcels(self, site: str) -> Iterator[Parcel]:
        """The smallest first."""
        held = self.holds.get(site, "")
        if held == self.model:
            yield Parcel("hash")
        elif (place := self.difference_from(held)).exists():
            yield Parcel("difference", held, place)
        yield Parcel("whole", path=self.whole())

    def note(self, site: str) -> None:
        if self.holds.get(site) != self.model:
            self.holds[site] = self.model
            write_json(self.notes, self.holds)

    def ask(self, site: str, kind: str, context: RoundContext) -> Talk[Message]:
        """A message about the round's model, and that model with it if need be.

        Raises:
            BadUpdate: the site does not take the model's shards.
        """
        for parcel in self.parcels(site):
            asked = {"sha256": self.model, "base": parcel.base, "payload": ""}
            content = RecordDict({"round": context.record()})
            if parcel.path is not None:
                manifest = manifest_of(parcel.path, self.spec.shard_bytes)
                asked["payload"] = manifest.sha256
                content.update(inline_shard(parcel.path, manifest, self.spec.inline_bytes))
                if SHARD not in content:
                    refused = yield from self.bring(site, context, parcel.path, manifest)
                    if refused is not None:
                        return refused
                self.sent += manifest.size
                self.log.write("model_sent", site=site, round=context.round, how=parcel.how, bytes=manifest.size)
            content["model"] = ConfigRecord(dict(asked))
            reply = yield Request(kind, content)
            if not reply.has_error():
                self.note(site)
            if not reply.has_error() or reply.error.code != MODEL_MISSING:
                break
        return reply

    def bring(self, site: str, context: RoundContext, path: Path, manifest: Manifest) -> Talk[Message | None]:
        """Send a payload by the bulk channel where it is large, else by shards; returns a refusal, if any.

        Raises:
            BadUpdate: the site does not take the shards.
        """
        if self.bulk is not None and self.bulk.takes(manifest):
            refused = yield from self.bulk.give(site, context, path, manifest)
            if refused is None or refused.error.code != NO_CHANNEL:
                return refused
        return (yield from self.push(site, context, path, manifest))

    def push(self, site: str, context: RoundContext, path: Path, manifest: Manifest) -> Talk[Message | None]:
        """Send a payload shard by shard, from the first that the site does not have; returns a refusal, if any.

        Raises:
            BadUpdate: the site's count of shards does not grow.
        """
        round_record, payload = context.record(), manifest.to_dict()
        content = RecordDict({"round": round_record, "payload": ConfigRecord({**payload})})
        there = -1
        while True:
            reply = yield Request("query.model", content, PATIENCE_S)
            if reply.has_error():
                return reply
            held = reply.content.config_records["held"].get("shards")
            if not isinstance(held, int) or not there < held <= len(manifest.shards):
                raise BadUpdate(site, "it does not take the model's shards")
            there = held
            if there == len(manifest.shards):
                return None
            about = ConfigRecord({**payload, "number": there})
            data = shard_record(read_shard(path, manifest, there))
            content = RecordDict({"round": round_record, "payload": about, SHARD: data})
