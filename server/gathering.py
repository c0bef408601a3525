"""A round's updates: asking for them, refusing what is not one, keeping the others on disk until they are folded.

    received-0007/
      SITE.offer.json          what the site's answer to `train` said: figures, and the manifest of its update
      SITE-SHA256.payload      the update; `..part` of it while its shards come
      SITE.safetensors, SITE.json                the model that it decodes to, and what is known of it

A site answers `train` with figures and a manifest; its update comes in shards, each asked for by hash and number. So
a coordinator that is started again asks no site twice for its training, and for no shard that it has.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import UserError
from common.transfer.incoming import Incoming
from common.transfer.manifest import BadPayload, Manifest, manifest_from
from common.transfer.records import NO_CHANNEL, PAYLOAD_MISSING, SHARD, shard_in
from common.update.chain import chain, decode
from common.update.payload import read_payload
from common.update.tensors import BadUpdate, State, byte_count, sha256
from server.conversation import Request, Talk, converse
from server.delivery import PATIENCE_S, Delivery
from server.exchange import RoundContext, check_reply, figures
from server.mailbox import Mailbox
from server.round_store import RoundStore, write_state
from server.run_folder import EventLog, read_json, write_json

TRAINED = ("patients", "questions", "reward", "informative", "generating_s", "learning_s")
"""Figures of the answer to `train`, as client/egress.py lets them out."""
MADE_AT_MOST = 3
"""How often a site is asked for an update that it then does not have."""
WRONG_SHARDS = 3
"""Shards in a row with other bytes than announced, at which the update is refused."""


class RoundFailed(UserError):
    """Too few usable updates. Finished rounds and what arrived are kept."""


@dataclass(frozen=True)
class Contribution:
    """What one site sent in a round. `figures` are the site's own words: patients, reward, seconds ..."""

    site: str
    figures: dict[str, float]
    bytes: int
    model_sha256: str
    """Of the round's model that the update is for."""


@dataclass(frozen=True)
class Offer:
    """A site's answer to `train`: its figures, and what its update will be once all of it is here."""

    figures: dict[str, float]
    manifest: Manifest
    model_sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {"figures": self.figures, "manifest": self.manifest.to_dict(), "model_sha256": self.model_sha256}


def kept_offer(path: Path, model_sha256: str) -> Offer | None:
    """What lies on the disk, if it is about this model."""
    if not path.exists():
        return None
    values = read_json(path)
    if values["model_sha256"] != model_sha256:
        return None
    return Offer(values["figures"], manifest_from(values["manifest"]), model_sha256)


def figures_in(reply: Message, context: RoundContext, site: str) -> dict[str, float]:
    """What an answer to `train` tells beside the update.

    Raises:
        BadUpdate: it is of another round, or not whole.
    """
    # A private study's sites tell nothing but the update.
    check_reply(reply, {"manifest": (), "metrics": () if context.study.privacy else TRAINED}, context, site)
    return figures(reply, "metrics")


def manifest_in(reply: Message, site: str) -> Manifest:
    """Raises: BadUpdate where the reply has none."""
    try:
        return manifest_from(reply.content.config_records["manifest"])
    except BadPayload as fault:
        raise BadUpdate(site, str(fault)) from None


@dataclass(frozen=True)
class Gathering:
    """One round's updates on their way in."""

    context: RoundContext
    model: State
    model_sha256: str
    store: RoundStore
    delivery: Delivery
    log: EventLog

    def contribution(self, site: str) -> Contribution | None:
        """What lies on the disk, decoded, for this model."""
        note = self.place(site).with_suffix(".json")
        if not note.exists():
            return None
        kept = Contribution(**read_json(note))
        return kept if kept.model_sha256 == self.model_sha256 else None

    def place(self, site: str) -> Path:
        return self.store.received(self.context.round, site)

    def talk(self, site: str) -> Talk[Contribution | None]:
        """Training at a site and its update; None, and a line in the log, where there is none that can be used."""
        try:
            summed = self.context.study.secure_sum is not None
            contribution: Contribution | None = yield from self.training(site) if summed else self.update(site)
        except BadUpdate as bad:
            self.log.write("update_refused", site=site, round=self.context.round, fault=bad.fault)
            self.forget(site)
            return None
        return contribution

    def forget(self, site: str) -> None:
        """What cannot be used is not there for the next try."""
        self.offer_place(site).unlink(missing_ok=True)
        payload = f"{site}-{'?' * 64}.payload"
        for path in (*self.place(site).parent.glob(payload), *self.place(site).parent.glob(f".{payload}.*.part")):
            path.unlink()

    def training(self, site: str) -> Talk[Contribution | None]:
        """Training at a site whose update stays there until it is summed (server/secure_sum.py). Raises: BadUpdate."""
        reply = yield from self.delivery.ask(site, "train", self.context)
        if reply.has_error():
            self.log.write("site_refused", site=site, round=self.context.round, fault=reply.error.reason or "")
            return None
        contribution = Contribution(site, figures_in(reply, self.context, site), 0, self.model_sha256)
        write_json(self.place(site).with_suffix(".json"), asdict(contribution))
        self.log.write("site_trained", site=site, round=self.context.round, figures=contribution.figures)
        return contribution

    def update(self, site: str, tries: int = MADE_AT_MOST) -> Talk[Contribution | None]:
        """Raises: BadUpdate."""
        offer, inline = kept_offer(self.offer_place(site), self.model_sha256), None
        if offer is None:
            reply = yield from self.delivery.ask(site, "train", self.context)
            if reply.has_error():
                self.log.write("site_refused", site=site, round=self.context.round, fault=reply.error.reason or "")
                return None
            offer, inline = self.keep_offer(site, reply), reply.content
        refused = yield from self.pull(site, offer, inline)
        if refused is None:
            return self.keep(site, offer)
        if refused.error.code == PAYLOAD_MISSING and tries > 1:
            # Gone or damaged at the site, where it is made again, with the same bytes.
            self.offer_place(site).unlink()
            return (yield from self.update(site, tries - 1))
        self.log.write("site_refused", site=site, round=self.context.round, fault=refused.error.reason or "")
        return None

    def offer_place(self, site: str) -> Path:
        return self.place(site).with_suffix(".offer.json")

    def payload_place(self, site: str, manifest: Manifest) -> Path:
        return self.place(site).with_name(f"{site}-{manifest.sha256}.payload")

    def keep_offer(self, site: str, reply: Message) -> Offer:
        """Raises: BadUpdate."""
        offer = Offer(figures_in(reply, self.context, site), manifest_in(reply, site), self.model_sha256)
        write_json(self.offer_place(site), offer.to_dict())
        self.log.write("update_offered", site=site, round=self.context.round, bytes=offer.manifest.size,
                       shards=len(offer.manifest.shards))  # fmt: skip
        return offer

    def pull(self, site: str, offer: Offer, inline: RecordDict | None = None) -> Talk[Message | None]:
        """Bring in the update, or the shards of it that are not here yet; returns a refusal, if any.

        Args:
            inline: the train reply's content; a payload that is small lies in it.

        Raises:
            BadUpdate: the bytes are not those of the manifest.
        """
        place, bulk = self.payload_place(site, offer.manifest), self.delivery.bulk
        if place.exists():
            return None
        if bulk is not None and bulk.takes(offer.manifest) and (inline is None or SHARD not in inline):
            refused = yield from bulk.fetch(site, self.context, offer.manifest, place)
            if refused is None or refused.error.code != NO_CHANNEL:
                return refused
        try:
            with Incoming(place, offer.manifest) as incoming:
                if inline is not None and SHARD in inline:
                    incoming.add(shard_in(inline)[incoming.held :])
                while not incoming.complete:
                    refused = yield from self.pull_shard(incoming)
                    if refused is not None:
                        return refused
                incoming.finish()
        except BadPayload as fault:
            raise BadUpdate(site, str(fault)) from None
        return None

    def pull_shard(self, incoming: Incoming) -> Talk[Message | None]:
        """The next shard; returns a refusal, if any.

        Raises:
            BadPayload: its bytes are not those of the manifest, again and again.
        """
        for last in (False,) * (WRONG_SHARDS - 1) + (True,):
            reply = yield self.request(incoming.shards, incoming.manifest)
            if reply.has_error():
                return reply
            try:
                incoming.add_shard(shard_in(reply.content))
                break
            except BadPayload:
                if last:
                    raise
        return None

    def request(self, number: int, manifest: Manifest) -> Request:
        wanted = ConfigRecord({"sha256": manifest.sha256, "number": number})
        return Request("query.shard", RecordDict({"round": self.context.record(), "wanted": wanted}), PATIENCE_S)

    def keep(self, site: str, offer: Offer) -> Contribution:
        """Decode what arrived, and note that it counts.

        Raises:
            BadUpdate: it is no model of finite values and right shapes.
        """
        place, payload = self.place(site), self.payload_place(site, offer.manifest)
        sent = read_payload(payload, site)
        values = decode(chain(self.context.study.update), self.context.trained(self.model), sent, site)
        contribution = Contribution(site, offer.figures, byte_count(sent), self.model_sha256)
        write_state(place, values)
        write_json(place.with_suffix(".json"), asdict(contribution))
        payload.unlink()
        self.log.write("update_received", site=site, round=self.context.round, bytes=contribution.bytes,
                       figures=contribution.figures)  # fmt: skip
        return contribution


def gather(
    box: Mailbox,
    context: RoundContext,
    model: State,
    store: RoundStore,
    delivery: Delivery,
    sites: Collection[str],
    deadline_s: float,
) -> dict[str, Contribution]:
    """Ask sites to train and keep what they send on the disk; those whose update lies there are not asked.

    Args:
        delivery: has announced `model`.

    Returns:
        all updates of the round that are on the disk, those of sites that are away now among them.
    """
    gathering = Gathering(context, model, sha256(model), store, delivery, box.log)
    found = {site: gathering.contribution(site) for site in context.study.sites.train}
    here = {site: kept for site, kept in found.items() if kept is not None}
    talks = {site: gathering.talk(site) for site in sites if site not in here}
    for site, contribution in converse(box, context.round, talks, deadline_s):
        if contribution is not None:
            here[site] = contribution
    return dict(sorted(here.items()))
