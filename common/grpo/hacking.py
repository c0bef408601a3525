"""Signs that a policy earns rewards without reasoning, told of each step beside its reward.

They are figures over one step's completions and stay where the questions are: no figure of a few patients is to leave.
"""

from collections import Counter
from dataclasses import dataclass

from common.grpo.rewards import BOXED, LETTERS

FEW_WORDS = 3
"""Fewer words before the box are no reasoning."""


@dataclass(frozen=True)
class Signs:
    letter_shift: float | None
    """How far the letters said are from the right ones, by their frequencies: 0 alike, 1 nothing in common (total
    variation distance). None where no letter was said or asked for."""
    unreasoned: float | None
    """Share of the boxed letters with fewer than FEW_WORDS words before them; None where no letter was boxed."""
    tokens: float
    """Mean length of a completion. A fall over the steps is a collapse."""


def signs(completions: list[str], completion_ids: list[list[int]], letters: list[str | None]) -> Signs:
    """Args: completions of a step, their tokens, and the right letter of each (None: a question without choices)."""
    boxes = [match for text in completions if (match := BOXED.search(text))]
    said, right = Counter(match[1] for match in boxes), Counter(letter for letter in letters if letter)
    shift = None
    if said and right:
        shift = sum(abs(said[x] / said.total() - right[x] / right.total()) for x in LETTERS) / 2
    bare = [len(match.string[: match.start()].split()) < FEW_WORDS for match in boxes]
    return Signs(
        letter_shift=shift,
        unreasoned=sum(bare) / len(bare) if bare else None,
        tokens=sum(map(len, completion_ids)) / len(completion_ids),
    )
