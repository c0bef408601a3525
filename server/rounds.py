"""The rounds of a federated run: ask the named sites, wait with a deadline, fold, step, evaluate, save.

A round is durable when its checkpoint is; what arrived for a round under way waits on the disk, so that a
coordinator that is killed anywhere goes on from there and ends with the same model.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from common.errors import UserError
from common.models.policy import load_policy, trainable_state
from common.models.transfer import folder_sha256, pack_folder
from common.questions.codebook import Codebook
from common.questions.codebook_file import to_toml
from common.study import BUILT_IN, Study
from common.update.chain import chain, decode
from common.update.tensors import BadUpdate, State, byte_count, check_finite, from_record, sha256, to_record
from server.codebooks import common_codebook
from server.fold import Folded, fold, normalised
from server.mailbox import Mailbox
from server.model_file import ModelFile
from server.outer import next_model, outer_optimizer
from server.round_store import Checkpoint, RoundStore, write_state
from server.run_folder import EventLog, read_json, write_json

Counts = dict[str, dict[str, float]]
"""Site -> figures."""

DESCRIBE_S = 60.0
"""How long connected nodes may take to say their names, and named sites to appear."""


TRAINED = ("patients", "questions", "reward", "informative", "generating_s", "learning_s")
EVALUATED = ("patients", "questions", "right", "boxed", "seconds")
"""Figures of the answers to `train` and `evaluate`, as client/egress.py lets them out."""


class RoundFailed(UserError):
    """Too few usable updates. Finished rounds and what arrived are kept."""


@dataclass(frozen=True)
class RoundContext:
    """All that one round needs to know; it travels through the round unchanged."""

    study: Study
    run: str
    round: int
    """From 1; 0 stands for the base model."""

    @property
    def first_step(self) -> int:
        return (self.round - 1) * self.study.rounds.local_steps

    def record(self) -> ConfigRecord:
        """The `round` record of a message."""
        return ConfigRecord(
            {
                "hash": self.study.hash,
                "run": self.run,
                "round": self.round,
                "first_step": max(0, self.first_step),
                "steps": self.study.rounds.local_steps,
            }
        )


@dataclass(frozen=True)
class Contribution:
    """What one site sent in a round. `figures` are the site's own words: patients, reward, seconds ..."""

    site: str
    figures: dict[str, float]
    bytes: int
    model_sha256: str
    """Of the round's model that the update is for."""


def name_sites(grid: Grid, study: Study, log: EventLog, wait_s: float = DESCRIBE_S) -> dict[str, int]:
    """Site name -> node id of the study's training sites.

    Raises:
        UserError: a named site is not there in time, or two nodes say the same name.
    """
    end = time.monotonic() + wait_s
    names: dict[int, str] = {}
    while True:
        unnamed = {f"node {node}": node for node in grid.get_node_ids() if node not in names}
        box = Mailbox(grid, unnamed, log)
        left = max(1.0, end - time.monotonic())
        for node, reply in box.ask("query.describe", 0, {name: RecordDict() for name in unnamed}, left):
            if reply.has_error():
                log.write("site_refused", site=node, round=0, fault=reply.error.reason or "")
            else:
                names[unnamed[node]] = str(reply.content.config_records["site"]["name"])
        sites: dict[str, int] = {}
        for node_id, name in names.items():
            if name in sites and name in study.sites.train:
                raise UserError(f"Two nodes say that they are site {name!r}.", "Stop one of them.")
            sites[name] = node_id
        missing = [name for name in study.sites.train if name not in sites]
        if not missing:
            break
        if time.monotonic() >= end:
            raise UserError(
                f"The run needs site {missing[0]!r} ({len(missing)} of {len(study.sites.train)} named sites are "
                "not connected).",
                "Start them with `wardround-site join`, or take them out of sites.train.",
            )
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    log.write("sites_named", sites=sorted(study.sites.train), others=sorted(set(sites) - set(study.sites.train)))
    return {name: sites[name] for name in sorted(study.sites.train)}


def configure_sites(box: Mailbox, study: Study, folder: Path, codebook: Codebook | None = None) -> Counts:
    """Send the study, the built-in model and the codebook that sites share to every site; all must accept.

    Returns:
        site -> `patients`, `questions`.

    Raises:
        UserError: a site refuses or does not answer.
    """
    values: dict[str, str] = {"json": study.message, "hash": study.hash}
    content = RecordDict()
    if study.model.base == BUILT_IN:
        values["model_sha256"] = folder_sha256(folder)
        content["model"] = pack_folder(folder)
    content["study"] = ConfigRecord(dict(values))
    if codebook is not None:
        content["codebook"] = ConfigRecord({"toml": to_toml(codebook)})
    counts: Counts = {}
    contents = dict.fromkeys(box.nodes, content)
    for site, reply in box.ask("query.configure", 0, contents, study.rounds.deadline_s):
        if reply.has_error():
            raise UserError(
                f"Site {site!r} refuses the study: {reply.error.reason}.", "Settle it with the site, then start again."
            )
        counts[site] = figures(reply, "counts")
        box.log.write("site_configured", site=site, **counts[site])
    silent = sorted(set(box.nodes) - set(counts))
    if silent:
        raise UserError(f"Site {silent[0]!r} did not answer the study.", "See whether it is running.")
    return counts


def figures(reply: Message, record: str) -> dict[str, float]:
    """A metric record's plain numbers."""
    found = reply.content.metric_records[record]
    return {name: value for name, value in sorted(found.items()) if isinstance(value, int | float)}


def check_reply(reply: Message, records: dict[str, tuple[str, ...]], context: RoundContext, site: str) -> None:
    """A reply of this round with these records and, in its metrics, these finite figures, none negative.

    Raises:
        BadUpdate: a record or figure is missing or wrong, or the reply is of another round.
    """
    for record, names in records.items():
        if record not in reply.content:
            raise BadUpdate(site, f"the reply has no {record!r} record")
        for name in names:
            value = reply.content.metric_records[record].get(name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise BadUpdate(site, f"the figure {name!r} is missing, negative or not finite")
    number = reply.content.config_records["manifest"].get("round")
    if number != context.round:
        raise BadUpdate(site, f"it answers round {number!r}, this is round {context.round}")


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


def weights_of(study: Study, here: dict[str, Contribution]) -> dict[str, float]:
    """Normalised weights as the study says."""
    if study.rounds.weights == "uniform":
        return normalised(dict.fromkeys(here, 1.0))
    return normalised({site: float(given.figures[study.rounds.weights]) for site, given in here.items()})


def folded_step(
    context: RoundContext, before: Checkpoint, store: RoundStore, weights: dict[str, float]
) -> tuple[Checkpoint, Folded]:
    """The next model and outer state, without notes, and how the models were folded.

    Raises:
        BadUpdate: the outer step leaves values that are not finite.
    """
    rounds, number = context.study.rounds, context.round
    outer = outer_optimizer(rounds.outer, dict(before.outer))
    with ExitStack() as opened:
        files = {site: opened.enter_context(ModelFile(store.received(number, site))) for site in weights}
        folded = fold(rounds.fold, weights, files, before.model)
        model = next_model(outer, before.model, folded.tensors)
    check_finite(model, f"the outer step of round {number}")
    return Checkpoint(number, number * rounds.local_steps, model, outer.state, {}), folded


def evaluate_sites(box: Mailbox, context: RoundContext, model: State) -> Counts:
    """Counts on each site's own validation questions; a site that does not answer is left out and named."""
    if context.study.rounds.validation_patients == 0:
        return {}
    content = RecordDict({"round": context.record(), "model": to_record(model)})
    contents = dict.fromkeys(box.nodes, content)
    curve: Counts = {}
    for site, reply in box.ask("evaluate", context.round, contents, context.study.rounds.deadline_s):
        if reply.has_error():
            box.log.write("site_refused", site=site, round=context.round, fault=reply.error.reason or "")
            continue
        try:
            check_reply(reply, {"manifest": (), "counts": EVALUATED}, context, site)
        except BadUpdate as bad:
            box.log.write("reply_refused", site=site, round=context.round, fault=bad.fault)
            continue
        curve[site] = figures(reply, "counts")
    return dict(sorted(curve.items()))


def points(curve: Counts, baseline: Counts) -> dict[str, dict[str, Any]]:
    """Each site's accuracy on its own validation patients, beside its own baseline (round 0)."""
    return {
        site: {
            "accuracy": point["right"] / point["questions"],
            "baseline": baseline[site]["right"] / baseline[site]["questions"] if site in baseline else None,
            "n_patients": point["patients"],
            "n_questions": point["questions"],
        }
        for site, point in curve.items()
        if point["questions"]
    }


def pooled_accuracy(curve: Counts) -> float | None:
    asked = sum(point["questions"] for point in curve.values())
    return sum(point["right"] for point in curve.values()) / asked if asked else None


def spent(here: dict[str, Contribution], curve: Counts, waited: float, wall: float) -> dict[str, float]:
    """Seconds of a round by what they went to; the sites' own are summed over sites.

    `communicating` is the time spent waiting for sites that none of their work explains: of all their work
    where they take turns (simulation), of the slowest's where they work side by side.
    """
    works = {site: c.figures["generating_s"] + c.figures["learning_s"] for site, c in here.items()}
    for site, point in curve.items():
        works[site] = works.get(site, 0.0) + point["seconds"]
    together, slowest = sum(works.values()), max(works.values(), default=0.0)
    explained = together if together <= waited else slowest
    return {
        "generating": sum(c.figures["generating_s"] for c in here.values()),
        "learning": sum(c.figures["learning_s"] for c in here.values()),
        "evaluating": sum(point["seconds"] for point in curve.values()),
        "communicating": max(0.0, waited - explained),
        "other": max(0.0, wall - waited),
    }


def one_round(box: Mailbox, context: RoundContext, before: Checkpoint, store: RoundStore) -> Checkpoint:
    """From a finished round's checkpoint to the next one's, saved.

    Raises:
        RoundFailed: fewer usable updates than the study's quorum.
    """
    start = time.monotonic()
    study, number = context.study, context.round
    box.log.write("round_started", round=number, rounds=study.rounds.rounds, sites=sorted(box.nodes))
    here = gather(box, context, before.model, store)
    gathered = time.monotonic() - start
    check_quorum(context, here)
    after, folded = folded_step(context, before, store, weights_of(study, here))
    stepped = time.monotonic()
    curve = evaluate_sites(box, context, after.model)
    waited = gathered + time.monotonic() - stepped
    baseline: Counts = before.notes["baseline"]
    notes = {
        "accuracy": pooled_accuracy(curve),
        "baseline": baseline,
        "sites": points(curve, baseline),
        "contributions": {
            site: {"weight": folded.weights[site], "scale": folded.scales[site], **c.figures}
            for site, c in here.items()
        },
        "bytes": {site: c.bytes for site, c in here.items()},
        "bytes_down": byte_count(before.model) * 2 * len(box.nodes),
        "seconds": spent(here, curve, waited, time.monotonic() - start),
    }
    after = replace(after, notes=notes)
    store.save(after)
    store.drop_received(number)
    for site, given in here.items():
        box.log.write("steps", site=site, round=number, reward=[given.figures["reward"]])
    box.log.write("round_finished", round=number, rounds=study.rounds.rounds, **notes)
    return after


def first_checkpoint(box: Mailbox, study: Study, run: str, folder: Path, store: RoundStore) -> Checkpoint:
    """Round 0: the base model, and where each site stands with it."""
    model = trainable_state(load_policy(study, folder))
    baseline = evaluate_sites(box, RoundContext(study, run, 0), model)
    notes = {"baseline": baseline, "accuracy": pooled_accuracy(baseline), "sites": points(baseline, baseline)}
    checkpoint = Checkpoint(0, 0, model, {}, notes)
    store.save(checkpoint)
    box.log.write("baseline", rounds=study.rounds.rounds, **notes)
    return checkpoint


def run_rounds(grid: Grid, study: Study, run: str, folder: Path, store: RoundStore, log: EventLog) -> Checkpoint:
    """All rounds of a study, from the last finished one on.

    Args:
        run: name of the run, a plain lower-case name; sites keep their state under it.
        folder: the base model.

    Returns:
        the last round's checkpoint.

    Raises:
        UserError: named sites are missing, a site refuses, or a round misses its quorum.
    """
    latest = store.latest()
    if latest is not None and latest.round == study.rounds.rounds:
        return latest
    box = Mailbox(grid, name_sites(grid, study, log), log)
    configure_sites(box, study, folder, common_codebook(box, study, store.folder))
    checkpoint = latest or first_checkpoint(box, study, run, folder, store)
    if latest is not None:
        log.write("resumed", round=latest.round)
    for number in range(checkpoint.round + 1, study.rounds.rounds + 1):
        checkpoint = one_round(box, RoundContext(study, run, number), checkpoint, store)
    return checkpoint
