"""The way of an update: one ordered list of steps, `encode` at the site and its mirror at the coordinator.

Both sides read the same list from the study (`update.steps`), so its order is visible in one place.
"""

from typing import Protocol

from common.study import Update
from common.update.delta import Delta
from common.update.tensors import State, check_finite, check_like


class Step(Protocol):
    """One step.

    Attributes:
        exact: decode(encode(x)) is x bit for bit.
        linear: a sum of encodings is the encoding of the sum, so that it can stand under a secure sum.
    """

    name: str
    exact: bool
    linear: bool

    def encode(self, values: State, before: State) -> State: ...

    def decode(self, values: State, before: State, source: str) -> State: ...


STEPS: dict[str, Step] = {"delta": Delta()}


def chain(spec: Update) -> list[Step]:
    """The study's steps in the order in which a site applies them."""
    return [STEPS[name] for name in spec.steps]


def encode(steps: list[Step], before: State, after: State) -> State:
    """What a site sends for the model `after`, given the round's model `before` (same names, shapes, types)."""
    values = after
    for step in steps:
        values = step.encode(values, before)
    return values


def decode(steps: list[Step], before: State, sent: State, source: str) -> State:
    """The site's model from what it sent: the steps backwards.

    Args:
        source: Who sent it, for the refusal.

    Raises:
        BadUpdate: names, shapes or types are not the model's, or a value is not finite.
    """
    values = sent
    for step in reversed(steps):
        values = step.decode(values, before, source)
    check_like(values, before, source)
    check_finite(values, source)
    return values
