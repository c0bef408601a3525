"""What becomes of a round whose sites are not all there (`rounds.on_missing`): who is asked when, and when the round
is complete, waits or stops.

A site whose key was revoked is not waited for, and what it sent is not folded: the round goes on without it where the
study's quorum allows, else the run stops. A site that is away is looked for until the deadline and asked as soon as it
is back. A site that was asked and sent nothing that can be used is not asked again in this round, except where the
study waits for all.
"""

import time
from collections.abc import Callable

from server.exchange import RoundContext
from server.gathering import Contribution, RoundFailed
from server.mailbox import Mailbox
from server.secure_sum import Summed, TooFew
from server.sites import Roll

LOOK_S = 2.0
"""How often a site that is away is looked for."""
AGAIN_S = 60.0
"""Pause before all missing sites are asked again, where the study waits for them; the deadline where that is less."""

Ask = Callable[[list[str], float], dict[str, Contribution]]
"""Asks these sites to train and gives them so many seconds; returns all usable updates of the round that are here."""


def updates(box: Mailbox, roll: Roll, context: RoundContext, ask: Ask) -> dict[str, Contribution]:
    """The updates that the round is folded from.

    Raises:
        RoundFailed: updates are missing, and the study neither waits for them nor goes on without them.
    """
    study, log = context.study, box.log
    rounds = study.rounds
    end, asked = time.monotonic() + rounds.deadline_s, set[str]()
    while True:
        here_now, gone = roll.call(context.round), box.gone(study.sites.train, context.round)
        box.nodes = {site: node for site, node in here_now.items() if site not in gone}
        now = [site for site in box.nodes if site not in asked]
        if now:
            log.write("sites_asked", round=context.round, sites=now)
        here = ask(now, max(0.0, end - time.monotonic()))
        asked.update(now)
        gone = box.gone(study.sites.train, context.round)
        here = {site: contribution for site, contribution in here.items() if site not in gone}
        missing = [site for site in study.sites.train if site not in here]
        left = end - time.monotonic()
        if not missing:
            return here
        if rounds.on_missing == "go-on" and len(here) >= study.quorum:
            log.write("round_goes_on", round=context.round, missing=missing)
            return here
        if len(study.sites.train) - len(gone) < study.quorum:
            raise failed(context, here, missing)
        if left > 0 and not (asked | gone).issuperset(missing):
            time.sleep(min(LOOK_S, left))
        elif rounds.on_missing == "wait":
            log.write("round_waits", round=context.round, missing=missing)
            time.sleep(min(AGAIN_S, rounds.deadline_s))
            end, asked = time.monotonic() + rounds.deadline_s, set(here)
        else:
            raise failed(context, here, missing)


def summed_updates(
    box: Mailbox, roll: Roll, context: RoundContext, ask: Ask, add_up: Callable[[dict[str, Contribution]], Summed]
) -> Summed:
    """A secure sum of the round's updates, in as many tries as the study waits for.

    Args:
        add_up: the sum of the updates of sites that have trained.

    Raises:
        RoundFailed: as `updates`, or the sum has too few sites, and the study does not wait for them.
    """
    rounds = context.study.rounds
    while True:
        here = updates(box, roll, context, ask)
        try:
            return add_up(here)
        except TooFew as few:
            if rounds.on_missing != "wait":
                raise
            box.log.write("round_waits", round=context.round, missing=few.missing)
            time.sleep(min(AGAIN_S, rounds.deadline_s))


def failed(context: RoundContext, here: dict[str, Contribution], missing: list[str]) -> RoundFailed:
    return RoundFailed(
        f"Round {context.round} has {len(here)} usable updates of the {context.study.quorum} that it needs; "
        f"none from {', '.join(missing)}.",
        "events.jsonl says why. Finished rounds and the updates received are kept: put it right and resume the run.",
    )
