"""Rewards as plain functions of the completion's text (method.md section 1, GRPO)."""

import re

BOXED = re.compile(r"\\boxed\{\s*([A-E])\s*\}")


def boxed_letter(text: str) -> str | None:
    r"""The letter in the first `\boxed{A-E}`, or None. Never fails on any text."""
    match = BOXED.search(text)
    return match[1] if match else None


def right_letter(completions: list[str], letter: list[str], **_: object) -> list[float]:
    r"""1 if the first `\boxed{A-E}` holds the right letter, else 0; nothing else counts (C-Reason)."""
    return [float(boxed_letter(text) == right) for text, right in zip(completions, letter, strict=True)]
