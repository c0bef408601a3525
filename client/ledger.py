"""What privacy a site has spent on a study, written down before anything that costs it is computed.

One line a charge, chained and durable as the audit log is (client/audit.py): a kill at any moment leaves the charge
whole, and then what it paid for may be computed, or leaves no charge and nothing computed. The same round from the same
model is charged once: it draws the same noise (common/grpo/noise.py), so doing it again tells nothing new.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from client.audit import extend, first_broken, locked, whole_lines
from client.policy import BUDGET_SPENT, LEDGER_BROKEN, Refusal
from common.study import Study

NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Charge:
    study: str
    run: str
    round: int
    occasion: str
    """Digest of all that the round's gradients depend on: its model, and where the optimiser goes on from."""
    steps: int
    epsilon: float
    """Of the study, after this charge."""


def charges(path: Path) -> list[Charge]:
    """All charges, oldest first.

    Raises:
        Refusal: LEDGER_BROKEN: somebody has changed, removed or reordered lines.
    """
    if first_broken(path) is not None:
        raise Refusal(LEDGER_BROKEN)
    names = [field.name for field in fields(Charge)]
    return [Charge(**{name: entry[name] for name in names}) for entry in map(json.loads, whole_lines(path))]


def planned(study: Study) -> float:
    """Epsilon of the whole study, each round once."""
    assert study.privacy is not None
    return study.privacy.epsilon(study.total_steps)


def spent(path: Path, study: str) -> float:
    return max((charge.epsilon for charge in charges(path) if charge.study == study), default=0.0)


def charge(path: Path, study: Study, run: str, round: int, occasion: str, limit: float | None) -> float:
    """Charge a round's steps to the study, unless they are charged already; returns the study's epsilon after it.

    Args:
        occasion: see `Charge`; what seeds the round's noise (common/grpo/patient_dp.py).
        limit: the site's own; what the study plans as a whole unless given.

    Raises:
        Refusal: BUDGET_SPENT: with this round the study would have cost more than the limit. LEDGER_BROKEN.
    """
    assert study.privacy is not None
    with locked(path):
        own = [charge for charge in charges(path) if charge.study == study.hash]
        for charge in own:
            if (charge.run, charge.round, charge.occasion) == (run, round, occasion):
                return charge.epsilon
        steps = sum(charge.steps for charge in own) + study.rounds.local_steps
        epsilon = study.privacy.epsilon(steps)
        if epsilon > (planned(study) if limit is None else limit):
            raise Refusal(BUDGET_SPENT)
        extend(path, asdict(Charge(study.hash, run, round, occasion, study.rounds.local_steps, epsilon)))
    return epsilon
