"""Rewards as plain functions of the completion's text (method.md section 1, GRPO)."""

import re

import polars as pl

LETTERS = "ABCDE"
BOXED = re.compile(r"\\boxed\{\s*([A-E])\s*\}")


BOXED_TEXT = re.compile(r"\\boxed\{([^{}]*)\}")


def boxed_letter(text: str) -> str | None:
    r"""The letter in the first `\boxed{A-E}`, or None. Never fails on any text."""
    match = BOXED.search(text)
    return match[1] if match else None


def right_letter(completions: list[str], letter: list[str], **_: object) -> list[float]:
    r"""1 if the first `\boxed{A-E}` holds the right letter, else 0; nothing else counts (C-Reason)."""
    return [float(boxed_letter(text) == right) for text, right in zip(completions, letter, strict=True)]


def letters_of(questions: pl.DataFrame) -> list[str | None]:
    """The right letter of each question, None of one that has no choices."""
    return [None if index is None else LETTERS[index] for index in questions["answer"]]


def same_text(said: str, right: str) -> bool:
    """Whether two answers are the same words: case and the width of spaces do not count."""
    return said.casefold().split() == right.casefold().split()


def boxed_text(text: str) -> str | None:
    r"""What stands in the first `\boxed{}`, or None."""
    match = BOXED_TEXT.search(text)
    return match[1] if match else None


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
