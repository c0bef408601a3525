r"""Rewards as plain functions of completions, and how their texts are read (method.md section 1, GRPO).

The first box that can be read counts: for a letter the first `\boxed{}` with one letter A-E and blanks, for an answer
in words the first `\boxed{}` without braces inside. What stands before or behind it does not matter, and no text is an
error.
"""

import re
from collections.abc import Callable

import polars as pl

from common.study import Rewards

LETTERS = "ABCDE"
BOXED = re.compile(r"\\boxed\{\s*([A-E])\s*\}")
BOXED_TEXT = re.compile(r"\\boxed\{([^{}]*)\}")

Reward = Callable[..., list[float]]
"""Takes `completions` (texts), `completion_ids` (tokens), `letter` and `reference` of each by name."""


def boxed_letter(text: str) -> str | None:
    r"""The letter in the first `\boxed{A-E}`, or None. Never fails on any text."""
    match = BOXED.search(text)
    return match[1] if match else None


def boxed_text(text: str) -> str | None:
    r"""What stands in the first `\boxed{}`, or None."""
    match = BOXED_TEXT.search(text)
    return match[1] if match else None


def letters_of(questions: pl.DataFrame) -> list[str | None]:
    """The right letter of each question, None of one that has no choices."""
    return [None if index is None else LETTERS[index] for index in questions["answer"]]


def same_text(said: str, right: str) -> bool:
    """Whether two answers are the same words: case and the width of spaces do not count."""
    return said.casefold().split() == right.casefold().split()


def right_letter(completions: list[str], letter: list[str], **_: object) -> list[float]:
    r"""1 if the first `\boxed{A-E}` holds the right letter, else 0; nothing else counts (C-Reason)."""
    return [float(boxed_letter(text) == right) for text, right in zip(completions, letter, strict=True)]


def exact_match(completions: list[str], reference: list[str], **_: object) -> list[float]:
    r"""1 if the first `\boxed{}` holds the reference's words, else 0: the reward where the answer is no letter."""
    said = [boxed_text(text) for text in completions]
    return [float(s is not None and same_text(s, right)) for s, right in zip(said, reference, strict=True)]


def right_answer(completions: list[str], letter: list[str | None], reference: list[str], **_: object) -> list[float]:
    """`right_letter` of the questions that have one, `exact_match` of the others."""
    texts = exact_match(completions, reference)
    letters = right_letter(completions, [right or "" for right in letter])
    return [by_text if right is None else by_letter
            for right, by_letter, by_text in zip(letter, letters, texts, strict=True)]  # fmt: skip


def readable(completions: list[str], letter: list[str | None], **_: object) -> list[float]:
    """1 where the completion has a box that can be read, right or wrong, else 0."""
    return [
        float((boxed_text(text) if right is None else boxed_letter(text)) is not None)
        for text, right in zip(completions, letter, strict=True)
    ]


def length_penalty(tokens: int, longest: int, begin: float) -> float:
    """0 up to `begin` (a share) of `longest` tokens, then falling to -1 at `longest` (DAPO: Yu et al. 2025,
    arXiv 2503.14476, equation 13)."""
    return -max(0.0, tokens / longest - begin) / (1 - begin)


def reward_terms(spec: Rewards, longest: int) -> list[tuple[Reward, float]]:
    """The terms of the study's reward that have a weight, with it; `longest`: tokens of a completion at most."""

    def brief(completion_ids: list[list[int]], **_: object) -> list[float]:
        return [length_penalty(len(ids), longest, spec.length_from) for ids in completion_ids]

    terms: list[tuple[Reward, float]] = [(right_answer, spec.answer), (readable, spec.format), (brief, spec.length)]
    return [(term, weight) for term, weight in terms if weight]
