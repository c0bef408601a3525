"""A site's part in a secure sum (common/update/secagg.py), durable: what a site agrees to is on its disk before it
says so, and holds for the same request again, for no other one.

    studies/HASH/sum.json      of the last sum that this site took part in; only its owner reads it (`Kept`)

A site opens one sum of a round, in one run of a study. A second one, of the same updates but another set of sites,
would tell by the difference what a single site sent; so a round that was opened is not summed again, and neither is the
study in another run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict

from client.disk import write_private
from client.messages import Task
from client.outbox import Outbox
from client.policy import SUM_CHANGED, SUM_FEW, SUM_IDENTITY, SUM_KEYS, SUM_OLD, Refusal
from client.replies import Agreed, Dealt, Keyed, Opened
from client.site import Site
from common.keys import read_private_key, read_public_key
from common.lock import only_one
from common.secure_sum import SecureSum, session_of
from common.study import Study
from common.transfer.manifest import Manifest, manifest_from
from common.transfer.records import PAYLOAD_MISSING
from common.update import secagg
from common.update.masks import Mask

WITHHELD = "withheld"
"""Folder, in a run's, of the update in clear: an outbox whose door is never opened."""


class Kept(BaseModel):
    """What a site knows of a sum. Bytes stand as base64."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    run: str
    round: int
    attempt: int
    update: str
    """Hash of the site's update: the keys mask this one and no other."""
    share_key: bytes = b""
    mask_key: bytes = b""
    seed: bytes = b""
    advertised: bytes = b""
    roster: dict[str, bytes] = {}
    """Site -> its signed keys, as the coordinator showed them first."""
    sealed: dict[str, bytes] = {}
    """Receiver -> this site's shares for it."""
    received: dict[str, bytes] = {}
    """Sender -> its shares for this site."""
    vector: dict[str, Any] = {}
    """Manifest of the masked update, once it is made."""
    survivors: tuple[str, ...] = ()
    """The list that this site has signed."""
    opened: bool = False
    opened_in: str = ""
    """The run in which this site has opened a sum of the study, this one or an earlier."""

    @property
    def place(self) -> tuple[str, int, int]:
        return self.run, self.round, self.attempt

    @property
    def own(self) -> secagg.Secrets:
        return secagg.Secrets(self.share_key, self.mask_key, self.seed)


@contextmanager
def refusing(code: int) -> Iterator[None]:
    """The protocol's own refusals leave as a number; their text may name any site."""
    try:
        yield
    except secagg.Refused:
        raise Refusal(code) from None


def identities(site: Site, study: Study) -> dict[str, ec.EllipticCurvePublicKey]:
    """The public keys of the training sites: those that the approved study names.

    Raises:
        Refusal: SUM_IDENTITY where this site's own is not among them.
    """
    assert study.secure_sum is not None
    if site.played_keys is not None:
        named = {name: read_public_key(site.played_keys / f"{name}.pub") for name in study.sites.train}
    else:
        named = study.secure_sum.identities()
    if site.key is None or named.get(site.name) != read_private_key(site.key).public_key():
        raise Refusal(SUM_IDENTITY)
    return named


def forget(study_folder: Path, run: str, number: int) -> None:
    """Rounds of a run up to this one are folded: their secrets and the update in clear are deleted."""
    place = study_folder / "sum.json"
    with only_one(study_folder / "sum.lock"):
        if not place.exists():
            return
        kept = Kept.model_validate_json(place.read_bytes())
        if kept.run == run and kept.round <= number:
            known = kept.model_dump(include={"run", "round", "attempt", "update", "opened", "opened_in"})
            write_private(place, Kept(**known).model_dump_json().encode())
            Outbox(study_folder / "runs" / run / WITHHELD).drop(kept.update)


@dataclass(frozen=True)
class SiteSum:
    """One sum at one site: the five requests of it. Every method raises `Refusal`."""

    site: Site
    study: Study
    task: Task
    attempt: int

    @property
    def folder(self) -> Path:
        return self.site.state / "studies" / self.study.hash

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.task.run

    @property
    def spec(self) -> SecureSum:
        assert self.study.secure_sum is not None
        return self.study.secure_sum

    @cached_property
    def session(self) -> secagg.Session:
        return session_of(self.study, self.task.run, self.task.round, self.attempt)

    @property
    def asked(self) -> tuple[str, int, int]:
        return self.task.run, self.task.round, self.attempt

    @property
    def identity(self) -> ec.EllipticCurvePrivateKey:
        assert self.site.key is not None  # `identities` looked
        return read_private_key(self.site.key)

    def trained(self) -> dict[str, Any]:
        """What the site noted of its training in this round.

        Raises:
            Refusal: PAYLOAD_MISSING where it has not trained, or lost the update.
        """
        note = self.run / "last.json"
        last = json.loads(note.read_text()) if note.exists() else None
        if last is None or last["asked"]["round"] != self.task.round:
            raise Refusal(PAYLOAD_MISSING)
        if not Outbox(self.run / WITHHELD).payload(last["manifest"]["sha256"]).exists():
            raise Refusal(PAYLOAD_MISSING)
        return dict(last)

    def last(self) -> Kept | None:
        place = self.folder / "sum.json"
        return Kept.model_validate_json(place.read_bytes()) if place.exists() else None

    def keep(self, kept: Kept, **changed: object) -> Kept:
        after = kept.model_copy(update=changed)
        write_private(self.folder / "sum.json", after.model_dump_json().encode())
        return after

    def current(self) -> Kept:
        """What is known of this sum.

        Raises:
            Refusal: SUM_OLD where this site is not in it, or in a later one by now.
        """
        kept = self.last()
        if kept is None or kept.place != self.asked or not kept.seed:
            raise Refusal(SUM_OLD)
        return kept

    def check_new(self, last: Kept) -> None:
        """Raises: Refusal(SUM_OLD) for a sum that comes before the last, or again, or beside one that was opened."""
        if last.opened_in not in ("", self.task.run):
            raise Refusal(SUM_OLD)
        before = (last.round, last.attempt)
        if last.run == self.task.run and (
            (self.task.round, self.attempt) <= before or (self.task.round == last.round and last.opened)
        ):
            raise Refusal(SUM_OLD)

    def keys(self) -> Keyed:
        """Keys for this sum, made once."""
        identities(self.site, self.study)
        last, update = self.last(), str(self.trained()["manifest"]["sha256"])
        if last is not None and last.place == self.asked:
            kept = self.current()
            if kept.update != update:
                raise Refusal(SUM_CHANGED)
            return Keyed(self.task.round, kept.advertised)
        if last is not None:
            self.check_new(last)
        own = secagg.new_secrets()
        advertised = secagg.advertise(self.session, self.site.name, own, self.identity)
        kept = Kept(
            run=self.task.run, round=self.task.round, attempt=self.attempt, update=update,
            share_key=own.share_key, mask_key=own.mask_key, seed=own.seed, advertised=advertised.packed,
            opened_in=last.opened_in if last is not None else "",
        )  # fmt: skip
        self.keep(kept)
        return Keyed(self.task.round, kept.advertised)

    def advertised(self, roster: Mapping[str, bytes]) -> dict[str, secagg.Advertised]:
        """The sites' keys, signatures checked against the study's list.

        Raises:
            Refusal: SUM_KEYS.
        """
        given = [secagg.unpack_advertised(site, data) for site, data in roster.items()]
        with refusing(SUM_KEYS):
            return secagg.check_advertised(self.session, given, identities(self.site, self.study))

    def shares(self, roster: dict[str, bytes]) -> Dealt:
        """This site's shares for the others, made once, for one list of keys."""
        kept = self.current()
        if not kept.roster:
            if len(roster) < self.spec.needed:
                raise Refusal(SUM_FEW)
            others = self.advertised(roster)
            if roster.get(self.site.name) != kept.advertised:
                raise Refusal(SUM_KEYS)
            with refusing(SUM_KEYS):
                sealed = secagg.deal(self.session, self.site.name, kept.own, others)
            kept = self.keep(kept, roster=roster, sealed=sealed)
        if kept.roster != roster:
            raise Refusal(SUM_CHANGED)
        return Dealt(self.task.round, kept.sealed)

    def held(self, kept: Kept, received: Mapping[str, bytes]) -> dict[str, secagg.Shares]:
        """This site's shares of the others' secrets.

        Raises:
            Refusal: SUM_KEYS where they were not sealed for this site by whom the coordinator says.
        """
        roster = {site: secagg.unpack_advertised(site, data) for site, data in kept.roster.items()}
        with refusing(SUM_KEYS):
            return {
                site: secagg.open_dealt(self.session, self.site.name, kept.own, roster[site], data)
                for site, data in received.items()
            }

    def masks(self, received: dict[str, bytes]) -> list[Mask]:
        """What hides this site's update among those of the sites whose shares came, one set of them for ever."""
        kept = self.current()
        if not kept.received:
            if self.site.name not in received or not received.keys() <= kept.roster.keys():
                raise Refusal(SUM_CHANGED)
            if len(received) < self.spec.needed:
                raise Refusal(SUM_FEW)
            self.held(kept, received)
            kept = self.keep(kept, received=received)
        if kept.received != received:
            raise Refusal(SUM_CHANGED)
        if kept.update != self.trained()["manifest"]["sha256"]:
            raise Refusal(SUM_CHANGED)
        dealt = {site: secagg.unpack_advertised(site, kept.roster[site]) for site in received}
        with refusing(SUM_KEYS):
            return secagg.masks_of(self.session, self.site.name, kept.own, dealt)

    def made(self) -> Manifest | None:
        """The masked update, if it is there already."""
        vector = self.current().vector
        here = bool(vector) and Outbox(self.run / "outbox").payload(vector["sha256"]).exists()
        return manifest_from(vector) if here else None

    def note_made(self, manifest: Manifest) -> None:
        self.keep(self.current(), vector=manifest.to_dict())

    def agree(self, survivors: list[str]) -> Agreed:
        """This site's signature under the list of sites whose updates arrived: under one list and no other."""
        kept, listed = self.current(), tuple(sorted(set(survivors)))
        if not kept.vector or self.site.name not in listed or not set(listed) <= kept.received.keys():
            raise Refusal(SUM_CHANGED)
        if len(listed) < self.spec.needed:
            raise Refusal(SUM_FEW)
        if not kept.survivors:
            kept = self.keep(kept, survivors=listed)
        if kept.survivors != listed:
            raise Refusal(SUM_CHANGED)
        return Agreed(self.task.round, secagg.sign_survivors(self.session, listed, self.identity))

    def open(self, signatures: dict[str, bytes]) -> Opened:
        """For each site on the signed list a share of its seed, for each that dropped out one of its mask key."""
        kept = self.current()
        if not kept.survivors:
            raise Refusal(SUM_CHANGED)
        named = identities(self.site, self.study)
        with refusing(SUM_KEYS):
            secagg.check_survivors(self.session, kept.survivors, signatures, kept.received, self.spec.needed, named)
        given = secagg.opened(self.held(kept, kept.received), kept.survivors)
        self.keep(kept, opened=True, opened_in=self.task.run)
        return Opened(self.task.round, given.seeds, given.mask_keys)
