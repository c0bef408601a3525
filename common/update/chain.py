"""The way of an update: one ordered list of steps, `encode` at the site and its mirror at the coordinator.

Both sides read the same list from the study (`update.steps`), so its order is visible in one place.

Error feedback (Seide et al. 2014, Interspeech; Karimireddy et al. 2019, arXiv 1901.09847): what the lossy steps of a
round do not say is left over at the site, and added to its next round's difference before anything is cut off.
"""

from typing import Protocol

from common.federation import Update
from common.update.blocks import Int4, Int8
from common.update.clip import Clip
from common.update.delta import Delta
from common.update.difference import Difference
from common.update.sparse_bf16 import SparseBf16
from common.update.tensors import State, check_finite, check_names
from common.update.topk import TopK


class Step(Protocol):
    """One step.

    Attributes:
        exact: decode(encode(x)) is x bit for bit.
        linear: a sum of what is sent decodes to the sum, so that it can stand under a secure sum.
        side: a second tensor that it adds to each tensor NAME is called NAME/side; "" for none.
        feeds_back: what it loses belongs into the next round's difference.
    """

    name: str
    exact: bool
    linear: bool
    side: str
    feeds_back: bool

    def encode(self, values: State, before: State) -> State:
        """Args: `before`: what went into the step's place in the chain at the coordinator (`like`)."""
        ...

    def like(self, before: State) -> State:
        """Empty tensors (device meta) of the shapes of what the step hands on, side tensors left out."""
        ...

    def decode(self, values: State, before: State, source: str) -> State: ...


def step(name: str, spec: Update) -> Step:
    match name:
        case "difference":
            return Difference()
        case "sparse-bf16":
            return SparseBf16()
        case "clip":
            assert spec.clip_norm is not None
            return Clip(spec.clip_norm)
        case "topk":
            assert spec.topk is not None
            return TopK(spec.topk)
        case "int8":
            return Int8()
        case "int4":
            return Int4()
    return Delta()


def chain(spec: Update) -> list[Step]:
    """The study's steps in the order in which a site applies them."""
    return [step(name, spec) for name in spec.steps]


def encode(steps: list[Step], before: State, after: State, left: State) -> tuple[State, State]:
    """What a site sends for the model `after`, given the round's model `before` (same names, shapes, types).

    Args:
        left: what is left over from the site's round before; empty at its first.

    Returns:
        what is sent, and what is left over for the next round (float32; empty where no step feeds back).

    Raises:
        BadUpdate: a value, or a difference of two, is not finite.
    """
    check_finite(after, "the model after the local steps")
    first = next((n for n, step in enumerate(steps) if step.feeds_back), len(steps))
    values = steps[0].encode(after, before)
    values = {name: value + left[name] if name in left else value for name, value in values.items()}
    for step in steps[1:first]:
        values = step.encode(values, before)
    if first == len(steps):
        return values, {}
    check_finite(values, "the difference to the round's model")
    stages = likes(steps, before)
    sent = values
    for step, stage in zip(steps[first:], stages[first:], strict=True):
        sent = step.encode(sent, stage)
    decoded = backwards(steps[first:], stages[first:], sent, "this site")
    return sent, {name: value - decoded[name] for name, value in values.items()}


def likes(steps: list[Step], before: State) -> list[State]:
    """For each step what goes into it: the round's model, then empty tensors of the right shapes."""
    stages = [before]
    for step in steps[:-1]:
        stages.append(step.like(stages[-1]))
    return stages


def backwards(steps: list[Step], stages: list[State], sent: State, source: str) -> State:
    values = sent
    for step, stage in zip(reversed(steps), reversed(stages), strict=True):
        values = step.decode(values, stage, source)
    return values


def check_sent(steps: list[Step], before: State, sent: State, source: str) -> None:
    """Refuse tensors of other names than these steps send for this model.

    Raises:
        BadUpdate: names the source and the first missing tensor, or how many there are too many.
    """
    sides = ["", *(f"/{step.side}" for step in steps if step.side)]
    check_names(sent, {name + side for name in before for side in sides}, source)


def decode(steps: list[Step], before: State, sent: State, source: str) -> State:
    """The site's model from what it sent: the steps backwards.

    Args:
        source: Who sent it, for the refusal.

    Returns:
        the model in its own types; in float32 where the steps send differences of values.

    Raises:
        BadUpdate: names, shapes or types are not those of the steps, bytes cannot be decoded, or a value is not finite.
    """
    check_sent(steps, before, sent, source)
    values = backwards(steps, likes(steps, before), sent, source)
    check_finite(values, source)
    return values
