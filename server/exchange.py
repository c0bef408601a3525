"""What a round's messages say, and what counts as an answer to one."""

import math
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from common.models.adapters import trained_in_round
from common.study import Study
from common.update.tensors import BadUpdate, State

Counts = dict[str, dict[str, float]]
"""Site -> figures."""


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

    def trained(self, model: State) -> State:
        """What of the model this round's sites train and send."""
        return trained_in_round(self.study.model, self.round, model)

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
