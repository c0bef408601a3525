"""A round's updates: asking for them, refusing what is not one, keeping the others on disk until they are folded."""

from collections.abc import Collection
from dataclasses import asdict, dataclass

from flwr.app import Message, RecordDict

from common.errors import UserError
from common.update.chain import chain, decode
from common.update.tensors import BadUpdate, State, byte_count, from_record, sha256, to_record
from server.exchange import RoundContext, check_reply, figures
from server.mailbox import Mailbox
from server.round_store import RoundStore, write_state
from server.run_folder import read_json, write_json

TRAINED = ("patients", "questions", "reward", "informative", "generating_s", "learning_s")
"""Figures of the answer to `train`, as client/egress.py lets them out."""


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


def accept(reply: Message, context: RoundContext, model: State, site: str) -> tuple[State, Contribution]:
    """A site's model and figures from its train reply.

    Raises:
        BadUpdate: the reply is of another round, is not whole, or is not a model of finite values and right shapes.
    """
    check_reply(reply, {"manifest": (), "update": (), "metrics": TRAINED}, context, site)
    sent = from_record(reply.content.array_records["update"], site)
    if sha256(sent) != reply.content.config_records["manifest"].get("sha256"):
        raise BadUpdate(site, "the update's bytes are not those of its manifest")
    values = decode(chain(context.study.update), context.trained(model), sent, site)
    return values, Contribution(site, figures(reply, "metrics"), byte_count(sent), sha256(model))


def gather(
    box: Mailbox, context: RoundContext, model: State, store: RoundStore, sites: Collection[str], deadline_s: float
) -> dict[str, Contribution]:
    """Ask sites to train and keep what they send on the disk; those whose update lies there are not asked.

    Returns:
        all updates of the round that are on the disk, those of sites that are away now among them.
    """
    here: dict[str, Contribution] = {}
    now = sha256(model)
    for site in context.study.sites.train:
        note = store.received(context.round, site).with_suffix(".json")
        if note.exists() and (kept := Contribution(**read_json(note))).model_sha256 == now:
            here[site] = kept
    content = RecordDict({"round": context.record(), "model": to_record(model)})
    contents = {site: content for site in sites if site not in here}
    for site, reply in box.ask("train", context.round, contents, deadline_s):
        if reply.has_error():
            box.log.write("site_refused", site=site, round=context.round, fault=reply.error.reason or "")
            continue
        try:
            values, contribution = accept(reply, context, model, site)
        except BadUpdate as bad:
            box.log.write("update_refused", site=site, round=context.round, fault=bad.fault)
            continue
        place = store.received(context.round, site)
        write_state(place, values)
        write_json(place.with_suffix(".json"), asdict(contribution))
        here[site] = contribution
        box.log.write("update_received", site=site, round=context.round, bytes=contribution.bytes,
                      figures=contribution.figures)  # fmt: skip
    return dict(sorted(here.items()))
