"""A round's updates: asking for them, refusing what is not one, keeping the others on disk until they are folded."""

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
    values = decode(chain(context.study.update), model, sent, site)
    return values, Contribution(site, figures(reply, "metrics"), byte_count(sent), sha256(model))


def gather(box: Mailbox, context: RoundContext, model: State, store: RoundStore) -> dict[str, Contribution]:
    """Ask every site to train and keep what it sends on the disk; sites whose update lies there are not asked."""
    here: dict[str, Contribution] = {}
    now = sha256(model)
    for site in box.nodes:
        note = store.received(context.round, site).with_suffix(".json")
        if note.exists() and (kept := Contribution(**read_json(note))).model_sha256 == now:
            here[site] = kept
    content = RecordDict({"round": context.record(), "model": to_record(model)})
    contents = {site: content for site in box.nodes if site not in here}
    for site, reply in box.ask("train", context.round, contents, context.study.rounds.deadline_s):
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


def check_quorum(context: RoundContext, here: dict[str, Contribution]) -> None:
    missing = [site for site in context.study.sites.train if site not in here]
    if len(here) >= context.study.quorum:
        return
    raise RoundFailed(
        f"Round {context.round} has {len(here)} usable updates of the {context.study.quorum} that it needs; "
        f"none from {', '.join(missing)}.",
        "events.jsonl says why. Finished rounds and the updates received are kept: put it right and resume the run.",
    )
