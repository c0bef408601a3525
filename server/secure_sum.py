"""A round's secure sum at the coordinator (common/update/secagg.py): five requests to all sites, one after the other.

    received-0007/
      sum.json                 what the sites said in each phase of this try (`Kept`), written when the phase is over
      SITE-SHA256.payload      a masked update
      SITE.json                what the site said of its training; the update in clear never leaves the site

A coordinator that is started again goes on with the phase that was under way: sites answer the same request in the same
words. A try with too few sites is given up and the next one begins with new keys, as long as nothing has been opened;
then only the same sum can be asked for again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from pydantic import BaseModel, ConfigDict

from common.secure_sum import coding_of, session_of, weight_of
from common.study import Study
from common.transfer.manifest import BadPayload
from common.transfer.records import PAYLOAD_MISSING, by_site, in_by_site
from common.update import secagg
from common.update.masked import add, decoded, take_away
from common.update.payload import read_payload
from common.update.tensors import BadUpdate, State, check_like
from server.conversation import Request, Talk, converse
from server.delivery import PATIENCE_S
from server.exchange import check_reply
from server.fold import normalised
from server.gathering import Contribution, Gathering, Offer, RoundFailed, manifest_in
from server.mailbox import Mailbox
from server.run_folder import write_text

PHASE_S = 900.0
"""What a phase may take, within the round's deadline: sites do not train in it."""

Result = TypeVar("Result")
Identities = Mapping[str, ec.EllipticCurvePublicKey]
BySite = dict[str, bytes]


class TooFew(RoundFailed):
    """Too few sites went through a phase. `missing`: those that did not."""

    def __init__(self, number: int, what: str, found: int, needed: int, missing: list[str]) -> None:
        super().__init__(
            f"The secure sum of round {number} has the {what} of {found} sites and needs {needed}; "
            f"none from {', '.join(missing)}.",
            "events.jsonl says why. Finished rounds are kept: put it right and resume the run.",
        )
        self.missing = missing


class Kept(BaseModel):
    """A try, phase by phase. Bytes stand as base64."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    model: str
    """Hash of the round's model."""
    attempt: int = 1
    keys: BySite = {}
    sealed: dict[str, BySite] = {}
    """Sender -> receiver -> shares."""
    vectors: dict[str, tuple[str, int]] = {}
    """Site -> hash and size of its masked update: the sites that the sum is of."""
    signatures: BySite = {}
    seeds: dict[str, BySite] = {}
    """Site that opened -> site that the sum is of -> share."""
    mask_keys: dict[str, BySite] = {}
    """Site that opened -> site that dropped out -> share."""


@dataclass(frozen=True)
class Summed:
    """An opened sum: of which sites, their parts in the mean, and the mean of their updates."""

    here: dict[str, Contribution]
    weights: dict[str, float]
    """Normalised."""
    mean: Iterator[tuple[str, torch.Tensor]]
    """By name, float64; read once."""


def identities(study: Study) -> Identities:
    """Raises: RoundFailed where the study names no keys: only a simulation has its own."""
    assert study.secure_sum is not None
    if not study.secure_sum.keys:
        raise RoundFailed(
            "The study has [secure_sum] but names no keys of its sites.",
            "Paste the line of each site's site.pub into [secure_sum.keys], and have the study approved.",
        )
    return study.secure_sum.identities()


class RoundSum:
    """One round's sum. `kept` is the try under way."""

    def __init__(self, box: Mailbox, gathering: Gathering, named: Identities, here: dict[str, Contribution]) -> None:
        """Args: `here`: what the sites that have trained said of it; `named`: the sites' public keys."""
        self.box, self.gathering, self.named, self.here = box, gathering, named, here
        self.context = gathering.context
        self.place = gathering.place("sum").with_name("sum.json")
        self.kept = Kept(model=gathering.model_sha256)
        if self.place.exists():
            before = Kept.model_validate_json(self.place.read_bytes())
            same = before.model == gathering.model_sha256
            self.kept = before if same else Kept(model=gathering.model_sha256, attempt=before.attempt + 1)

    @property
    def session(self) -> secagg.Session:
        return session_of(self.context.study, self.context.run, self.context.round, self.kept.attempt)

    def keep(self, kept: Kept) -> None:
        self.kept = kept
        write_text(self.place, kept.model_dump_json())

    def enough(self, what: str, found: Mapping[str, object], needed: int) -> None:
        """Raises: TooFew; then the next try begins anew."""
        if len(found) < needed:
            self.keep(Kept(model=self.kept.model, attempt=self.kept.attempt + 1))
            missing = sorted(set(self.context.study.sites.train) - set(found))
            raise TooFew(self.context.round, what, len(found), needed, missing)

    def refused(self, site: str, reply: Message) -> None:
        fault = reply.error.reason or ""
        self.box.log.write("site_refused", site=site, round=self.context.round, fault=fault)
        if reply.error.code == PAYLOAD_MISSING:
            # It has lost its update: it is to be asked for its training again.
            self.gathering.place(site).with_suffix(".json").unlink(missing_ok=True)

    def content(self, **records: ConfigRecord) -> RecordDict:
        about = ConfigRecord({"attempt": self.kept.attempt})
        return RecordDict({"round": self.context.record(), "sum": about, **records})

    def asked(self, site: str, kind: str, content: RecordDict, patience_s: float | None) -> Talk[Message | None]:
        reply = yield Request(kind, content, patience_s)
        if reply.has_error():
            self.refused(site, reply)
            return None
        return reply

    def lead(self, talks: Mapping[str, Talk[Result | None]]) -> dict[str, Result]:
        """The talks of a phase with the sites that are connected; who fails in it is left out."""
        deadline_s = min(PHASE_S, self.context.study.rounds.deadline_s)
        here = {site: talk for site, talk in talks.items() if site in self.box.nodes}
        ended = converse(self.box, self.context.round, here, deadline_s)
        return dict(sorted((site, result) for site, result in ended if result is not None))

    def phase(
        self, kind: str, contents: Mapping[str, RecordDict], read: Callable[[str, Message], Result]
    ) -> dict[str, Result]:
        """One request to each site, and what `read` finds in the answers."""
        talks = {site: self.asked(site, kind, content, PATIENCE_S) for site, content in contents.items()}
        found = {}
        for site, reply in self.lead(talks).items():
            try:
                check_reply(reply, {"manifest": ()}, self.context, site)
                found[site] = read(site, reply)
            except BadUpdate as bad:
                self.box.log.write("reply_refused", site=site, round=self.context.round, fault=bad.fault)
            except (BadPayload, secagg.Refused) as bad:
                self.box.log.write("reply_refused", site=site, round=self.context.round, fault=str(bad))
        return found

    def go(self) -> Summed:
        """From where the try stands to the opened sum.

        Raises:
            TooFew: a phase has too few sites.
            RoundFailed: the shares that were opened do not fit.
        """
        needed = self.context.study.quorum
        for begun, phase in (
            (self.kept.keys, self.exchange_keys),
            (self.kept.sealed, self.deal),
            (self.kept.vectors, self.collect),
        ):
            if not begun:
                phase(needed)
        if not self.kept.signatures:
            self.sign(self.session.threshold)
        if not self.kept.seeds:
            self.open()
        return self.summed()

    def exchange_keys(self, needed: int) -> None:
        def read(site: str, reply: Message) -> bytes:
            data = one_of(reply, "advertised")
            keys = secagg.unpack_advertised(site, data)
            secagg.check_signature(self.named[site], keys.signature, keys.signed(self.session), site)
            return data

        asked = {site: self.content() for site in self.here}
        keys = self.phase("query.sum_keys", asked, read)
        self.enough("keys", keys, needed)
        self.keep(self.kept.model_copy(update={"keys": keys}))

    def deal(self, needed: int) -> None:
        keys = self.kept.keys

        def read(site: str, reply: Message) -> BySite:
            sealed = in_by_site(reply.content.config_records.get("sealed", {}))
            if sealed.keys() != keys.keys():
                raise BadPayload("its shares are not for the sites that take part")
            return sealed

        sealed = self.phase("query.sum_shares", {site: self.content(keys=by_site(keys)) for site in keys}, read)
        self.enough("shares", sealed, needed)
        self.keep(self.kept.model_copy(update={"sealed": sealed}))

    def collect(self, needed: int) -> None:
        sealed = self.kept.sealed
        talks = {}
        for site in sealed:
            received = by_site({sender: shares[site] for sender, shares in sealed.items()})
            talks[site] = self.vector(site, self.content(sealed=received))
        vectors = self.lead(talks)
        self.enough("masked updates", vectors, needed)
        self.keep(self.kept.model_copy(update={"vectors": vectors}))

    def vector(self, site: str, content: RecordDict) -> Talk[tuple[str, int] | None]:
        """A site's masked update, brought in; its hash and size."""
        reply = yield from self.asked(site, "query.sum_vector", content, None)
        if reply is None:
            return None
        try:
            check_reply(reply, {"manifest": ()}, self.context, site)
            manifest = manifest_in(reply, site)
            offer = Offer({}, manifest, self.gathering.model_sha256)
            refused = yield from self.gathering.pull(site, offer, reply.content)
            if refused is not None:
                self.refused(site, refused)
                return None
            self.read(site, manifest.sha256)
        except BadUpdate as bad:
            self.box.log.write("update_refused", site=site, round=self.context.round, fault=bad.fault)
            self.gathering.forget(site)
            return None
        self.box.log.write("masked_update_received", site=site, round=self.context.round, bytes=manifest.size)
        return manifest.sha256, manifest.size

    def read(self, site: str, sha256: str) -> State:
        """Raises: BadUpdate for other names, shapes or types than masked updates of this round have."""
        sent = read_payload(self.gathering.place(site).with_name(f"{site}-{sha256}.payload"), site)
        trained = self.context.trained(self.gathering.model)
        check_like(sent, trained, site, dict.fromkeys(trained, torch.int32))
        return sent

    def sign(self, needed: int) -> None:
        survivors = list(self.kept.vectors)

        def read(site: str, reply: Message) -> bytes:
            signature = one_of(reply, "signature")
            signed = secagg.survivors_signed(self.session, survivors)
            secagg.check_signature(self.named[site], signature, signed, site)
            return signature

        about = ConfigRecord({"attempt": self.kept.attempt, "survivors": survivors})
        asked = {site: self.content() for site in survivors}
        for content in asked.values():
            content["sum"] = about
        signatures = self.phase("query.sum_survivors", asked, read)
        self.enough("signatures", signatures, needed)
        self.keep(self.kept.model_copy(update={"signatures": signatures}))

    def open(self) -> None:
        """Ask who signed for their shares. The try is not given up from here on: some may have opened it."""

        def read(site: str, reply: Message) -> tuple[BySite, BySite]:
            records = reply.content.config_records
            return in_by_site(records.get("seeds", {})), in_by_site(records.get("mask_keys", {}))

        signatures = self.kept.signatures
        asked = {site: self.content(signatures=by_site(signatures)) for site in signatures}
        opened = self.phase("query.sum_open", asked, read)
        if len(opened) < self.session.threshold:
            missing = sorted(set(signatures) - set(opened))
            raise TooFew(self.context.round, "opened shares", len(opened), self.session.threshold, missing)
        seeds = {site: seeds for site, (seeds, _) in opened.items()}
        mask_keys = {site: keys for site, (_, keys) in opened.items()}
        self.keep(self.kept.model_copy(update={"seeds": seeds, "mask_keys": mask_keys}))

    def summed(self) -> Summed:
        """Add the masked updates and take away what does not cancel.

        Raises:
            RoundFailed: the shares that were opened are not those of the secrets that were advertised.
        """
        kept, study = self.kept, self.context.study
        dealt = {site: secagg.unpack_advertised(site, kept.keys[site]) for site in kept.sealed}
        answers = {site: secagg.Opened(kept.seeds[site], kept.mask_keys[site]) for site in kept.seeds}
        try:
            rest = secagg.leftover(self.session, dealt, kept.vectors, answers)
        except secagg.Refused as fault:
            raise RoundFailed(
                f"The secure sum of round {self.context.round} cannot be opened: {fault}.",
                "Some site sends wrong shares. Leave it out of the study, which needs a new approval.",
            ) from None
        trained = self.context.trained(self.gathering.model)
        total = {name: torch.zeros(tensor.shape, dtype=torch.int32) for name, tensor in trained.items()}
        for site, (sha256, _) in kept.vectors.items():
            add(total, self.read(site, sha256))
        take_away(total, rest)
        here = {site: replace(self.here[site], bytes=size) for site, (_, size) in kept.vectors.items()}
        weights = {site: weight_of(study, given.figures) for site, given in here.items()}
        self.box.log.write("sum_opened", round=self.context.round, sites=list(here), attempt=kept.attempt)
        return Summed(here, normalised(weights), decoded(total, coding_of(study), sum(weights.values())))


def one_of(reply: Message, name: str) -> bytes:
    """Raises: BadPayload where the reply has no such bytes."""
    records = reply.content.config_records
    value = records["sum"].get(name) if "sum" in records else None
    if not isinstance(value, bytes):
        raise BadPayload(f"the reply has no {name!r}")
    return value
