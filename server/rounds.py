"""The rounds of a federated run: ask the named sites, wait with a deadline, fold, step, evaluate, save.

A round is durable when its checkpoint is; what arrived for a round under way waits on the disk, so that a
coordinator that is killed anywhere goes on from there and ends with the same model.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.models.policy import load_policy, trainable_state
from common.study import Study
from common.update.tensors import BadUpdate, State, check_finite
from server.adapters import measure_and_correct
from server.bulk_route import BulkRoute
from server.codebooks import common_codebook
from server.conversation import Talk, converse
from server.delivery import Delivery
from server.exchange import Counts, RoundContext, check_reply, figures
from server.fold import Folded, fold, normalised
from server.gate import Gate, open_gate
from server.gathering import Contribution, Gathering, gather
from server.mailbox import Mailbox, Names, nobody
from server.missing import summed_updates, updates
from server.model_file import ModelFile
from server.outer import next_model, outer_optimizer
from server.round_store import Checkpoint, RoundStore
from server.run_folder import EventLog
from server.secure_sum import Identities, RoundSum, Summed, identities
from server.sites import DESCRIBE_S, Roll, configure_sites, study_content

ACKNOWLEDGE_S = 60.0
"""How long a run that is done waits for the sites to hear of it."""
EVALUATED = ("patients", "questions", "right", "boxed", "seconds")
"""Figures of the answer to `evaluate`, as client/egress.py lets them out."""


def weights_of(study: Study, here: dict[str, Contribution]) -> dict[str, float]:
    """Normalised weights as the study says."""
    if study.rounds.weights == "uniform":
        return normalised(dict.fromkeys(here, 1.0))
    return normalised({site: float(given.figures[study.rounds.weights]) for site, given in here.items()})


def sum_folded(summed: Summed, trained: State) -> Folded:
    """The mean of the sites' models, from the opened sum of their updates."""
    values = ((name, trained[name].double() + change) for name, change in summed.mean)
    return Folded(summed.weights, dict.fromkeys(summed.weights, 1.0), values)


def folded_step(
    context: RoundContext, before: Checkpoint, store: RoundStore, weights: dict[str, float], summed: Summed | None
) -> tuple[Checkpoint, Folded]:
    """The next model and outer state, and how the models were folded: of the sum, where there is one.

    The notes have `adapter_bias` where LoRA's factors are averaged apart: what that lost (server/adapters.py).

    Raises:
        BadUpdate: the outer step leaves values that are not finite.
    """
    study, rounds, number = context.study, context.study.rounds, context.round
    outer = outer_optimizer(rounds.outer, dict(before.outer))
    trained, notes = context.trained(before.model), {}
    with ExitStack() as opened:
        if summed is not None:
            files, folded = {}, sum_folded(summed, trained)
        else:
            files = {site: opened.enter_context(ModelFile(store.received(number, site))) for site in weights}
            folded = fold(rounds.fold, weights, files, trained)
        model = before.model | next_model(outer, trained, folded.tensors)
        if study.model.factors_apart:
            lora = study.model.lora
            corrected, notes["adapter_bias"] = measure_and_correct(lora, weights, files, model, outer.state)
            model |= corrected
    check_finite(model, f"the outer step of round {number}")
    return Checkpoint(number, number * rounds.local_steps, model, outer.state, notes), folded


def evaluate_talk(site: str, context: RoundContext, delivery: Delivery, log: EventLog) -> Talk[dict[str, float] | None]:
    """One site's counts; None, and a line in the log, where it has none that can be used."""
    try:
        reply = yield from delivery.ask(site, "evaluate", context)
        if reply.has_error():
            log.write("site_refused", site=site, round=context.round, fault=reply.error.reason or "")
            return None
        check_reply(reply, {"manifest": (), "counts": EVALUATED}, context, site)
    except BadUpdate as bad:
        log.write("reply_refused", site=site, round=context.round, fault=bad.fault)
        return None
    return figures(reply, "counts")


def evaluate_sites(box: Mailbox, context: RoundContext, delivery: Delivery) -> Counts:
    """Counts on each site's own validation questions; a site that does not answer is left out and named."""
    if context.study.rounds.validation_patients == 0:
        return {}
    talks = {site: evaluate_talk(site, context, delivery, box.log) for site in box.nodes}
    curve = converse(box, context.round, talks, context.study.rounds.deadline_s)
    return {site: counts for site, counts in sorted(curve) if counts is not None}


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


def spent(here: dict[str, Contribution], curve: Counts, waited: float, gated: float, wall: float) -> dict[str, float]:
    """Seconds of a round by what they went to; the sites' own are summed over sites.

    Sites of a private study do not tell theirs: all is `communicating`.

    `communicating` is the time spent waiting for sites that none of their work explains: of all their work
    where they take turns (simulation), of the slowest's where they work side by side.
    """
    generating, learning = (
        {site: c.figures.get(name, 0.0) for site, c in here.items()} for name in ("generating_s", "learning_s")
    )
    works = {site: generating[site] + learning[site] for site in here}
    for site, point in curve.items():
        works[site] = works.get(site, 0.0) + point["seconds"]
    together, slowest = sum(works.values()), max(works.values(), default=0.0)
    explained = together if together <= waited else slowest
    return {
        "generating": sum(generating.values()),
        "learning": sum(learning.values()),
        "evaluating": sum(point["seconds"] for point in curve.values()) + gated,
        "communicating": max(0.0, waited - explained),
        "other": max(0.0, wall - waited - gated),
    }


def gated_step(gate: Gate, before: Checkpoint, after: Checkpoint, log: EventLog) -> Checkpoint:
    """What the gate lets stand of a step; a refused one is logged."""
    stands = gate.pass_or_stay(before, after)
    told = stands.notes["gate"]
    if not told["taken"]:
        fault = f"{100 * told['tried']:.1f} % right on the public cohort after {100 * told['accuracy']:.1f} %"
        log.write("step_refused", round=after.round, fault=fault, worse_than=gate.worse_than, **told)
    return stands


def one_round(
    box: Mailbox,
    roll: Roll,
    context: RoundContext,
    before: Checkpoint,
    store: RoundStore,
    delivery: Delivery,
    gate: Gate | None,
    named: Identities | None,
) -> Checkpoint:
    """From a finished round's checkpoint to the next one's, saved.

    Args:
        named: the sites' public keys, where the study has a secure sum.

    Raises:
        RoundFailed: updates are missing, and the study neither waits for them nor goes on without them.
    """
    start = time.monotonic()
    study, number = context.study, context.round
    box.log.write("round_started", round=number, rounds=study.rounds.rounds, sites=sorted(study.sites.train))
    delivery.announce(before.model)

    def ask(sites: list[str], left: float) -> dict[str, Contribution]:
        return gather(box, context, before.model, store, delivery, sites, left)

    if named is None:
        here, summed = updates(box, roll, context, ask), None
        weights = weights_of(study, here)
    else:
        gathering = Gathering(context, before.model, delivery.model, store, delivery, box.log)
        summed = summed_updates(box, roll, context, ask, lambda here: RoundSum(box, gathering, named, here).go())
        here, weights = summed.here, summed.weights
    down = delivery.sent
    gathered = time.monotonic() - start
    after, folded = folded_step(context, before, store, weights, summed)
    gating = time.monotonic()
    after = gated_step(gate, before, after, box.log) if gate else after
    stepped = time.monotonic()
    delivery.announce(after.model, before.model)
    curve = evaluate_sites(box, context, delivery)
    waited = gathered + time.monotonic() - stepped
    baseline: Counts = before.notes["baseline"]
    notes = {
        **after.notes,
        "accuracy": pooled_accuracy(curve),
        "baseline": baseline,
        "sites": points(curve, baseline),
        "contributions": {
            site: {"weight": folded.weights[site], "scale": folded.scales[site], **c.figures}
            for site, c in here.items()
        },
        "bytes": {site: c.bytes for site, c in here.items()},
        "bytes_down": down + delivery.sent,
        "seconds": spent(here, curve, waited, stepped - gating, time.monotonic() - start),
    }
    after = replace(after, notes=notes)
    store.save(after)
    store.drop_received(number)
    store.prune(study.rounds.keep_checkpoints)
    for site, given in here.items() if study.privacy is None else ():
        box.log.write("steps", site=site, round=number, reward=[given.figures["reward"]])
    box.log.write("round_finished", round=number, rounds=study.rounds.rounds, **notes)
    return after


def first_checkpoint(
    box: Mailbox, study: Study, run: str, folder: Path, store: RoundStore, delivery: Delivery, gate: Gate | None
) -> Checkpoint:
    """Round 0: the base model, and where each site and the gate's questions stand with it."""
    model = trainable_state(load_policy(study, folder))
    delivery.announce(model)
    baseline = evaluate_sites(box, RoundContext(study, run, 0), delivery)
    notes: dict[str, Any] = {"baseline": baseline, "accuracy": pooled_accuracy(baseline)}
    notes["sites"] = points(baseline, baseline)
    if gate:
        notes["gate"] = {"accuracy": gate.accuracy(model)}
    checkpoint = Checkpoint(0, 0, model, {}, notes)
    store.save(checkpoint)
    box.log.write("baseline", rounds=study.rounds.rounds, **notes)
    return checkpoint


def acknowledge(box: Mailbox, context: RoundContext) -> None:
    """Tell the sites that the last round is folded, so that they need not keep its update.

    Earlier rounds' are acknowledged by the messages of the next. A site that misses it deletes the update in time.
    """
    content = RecordDict({"round": context.record()})
    for _ in box.ask("query.acknowledge", context.round, dict.fromkeys(box.nodes, content), ACKNOWLEDGE_S):
        pass


def run_rounds(
    grid: Grid,
    study: Study,
    run: str,
    folder: Path,
    store: RoundStore,
    log: EventLog,
    bulk: BulkRoute | None = None,
    played: Identities | None = None,
    revoked: Names = nobody,
) -> Checkpoint:
    """All rounds of a study, from the last finished one on.

    Args:
        run: name of the run, a plain lower-case name; sites keep their state under it.
        folder: the base model.
        bulk: the way that large payloads take; all travel in messages where there is none.
        played: the sites' public keys in a simulation; else a secure sum's are those that the study names.
        revoked: says the sites whose keys are revoked now.

    Returns:
        the last round's checkpoint.

    Raises:
        UserError: named sites are missing, a site refuses, or a round misses its quorum.
    """
    latest = store.latest()
    if latest is not None and latest.round == study.rounds.rounds:
        return latest
    named = None if study.secure_sum is None else played or identities(study)
    roll = Roll(grid, study, log, revoked=revoked)
    needed = len(study.sites.train) if latest is None else study.quorum
    box = Mailbox(grid, roll.assemble(needed, DESCRIBE_S), log, revoked=revoked)
    codebook = common_codebook(box, study, store.folder)
    content = study_content(study, folder, codebook)
    configure_sites(box, study, content)
    roll.begin(box.nodes, content)
    gate = open_gate(study, folder, codebook, store.folder)
    delivery = Delivery(store.folder / "outgoing", study.transfer, log, bulk)
    checkpoint = latest or first_checkpoint(box, study, run, folder, store, delivery, gate)
    if latest is not None:
        log.write("resumed", round=latest.round)
    for number in range(checkpoint.round + 1, study.rounds.rounds + 1):
        checkpoint = one_round(box, roll, RoundContext(study, run, number), checkpoint, store, delivery, gate, named)
    acknowledge(box, RoundContext(study, run, study.rounds.rounds))
    delivery.end()
    return checkpoint
