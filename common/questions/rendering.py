"""The text of a question: `[Section]` blocks of `Name (unit): value` lines, the question, the lettered choices.

Everything for many patients is a polars expression; the functions on strings say the same for one question.
"""

from collections.abc import Callable, Sequence

import polars as pl

from common.questions.codebook import Codebook
from common.questions.printing import print_values
from common.registry.config import Feature

LETTERS = "ABCDE"
MASK = "[MASK]"
SYSTEM = "Answer without a disclaimer. Give the final answer, the letter only, within \\boxed{}."

Wording = Callable[[Feature], str]


def label(feature: Feature) -> str:
    return f"{feature.name} ({feature.unit})" if feature.unit else feature.name


def ask_masked(feature: Feature) -> str:
    return f"What is the masked value of {label(feature)}?"


def ask_shown(feature: Feature) -> str:
    return f"What is the value of {label(feature)}?"


def render_choices(choices: Sequence[str]) -> str:
    """`A. value` lines."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def render_question(record: str, question: str, choices: Sequence[str]) -> str:
    """The whole user prompt.

    Args:
        record: text of a record; question: a sentence, from `ask_masked` or `ask_shown`.
    """
    return f"{record}\n\nQuestion: {question}\n{render_choices(choices)}"


def value_columns(frame: pl.DataFrame, features: Sequence[Feature], codebook: Codebook) -> pl.DataFrame:
    """Every value as it is printed, one text column per feature, missing null."""
    return frame.select(print_values(f, codebook.columns[f.column].decimals).alias(f.column) for f in features)


def line_columns(values: pl.DataFrame, features: Sequence[Feature]) -> pl.DataFrame:
    """Every value's `Name (unit): value` line, over the columns of `value_columns`; missing values have none."""
    return values.select((pl.lit(f"{label(f)}: ") + pl.col(f.column)).alias(f.column) for f in features)


def shown_with(
    target: Feature, features: Sequence[Feature], times: Sequence[str], codebook: Codebook, masked: bool = True
) -> list[Feature]:
    """The features that stand in the record of a question about `target`, itself included, in registry order.

    What becomes known later than the target is not shown (`times`: the moments, the earliest first). With the target
    masked, the features that would give it away (the codebook's excluded pairs) are left out.
    """
    excluded = codebook.excluded.get(target.column, ()) if masked else ()
    later = times[times.index(target.known) + 1 :]
    return [f for f in features if f.column == target.column or (f.column not in excluded and f.known not in later)]


def record_expression(shown: Sequence[Feature], masked: str | None) -> pl.Expr:
    """The record as text, over the columns of `line_columns`.

    Args:
        shown: features of the record; masked: the column printed as `[MASK]`, if any.

    A missing value has no line and a section without lines no heading.
    """
    sections: dict[str, list[pl.Expr]] = {}
    for feature in shown:
        hidden = feature.column == masked
        line = pl.lit(f"{label(feature)}: {MASK}") if hidden else pl.col(feature.column)
        sections.setdefault(feature.section, []).append(line)
    blocks = []
    for section, lines in sections.items():
        body = pl.concat_str(lines, separator="\n", ignore_nulls=True)
        blocks.append(pl.when(body != "").then(pl.lit(f"[{section}]\n") + body))
    return pl.concat_str(blocks, separator="\n", ignore_nulls=True)


def prompt_expression(record: pl.Expr, question: str, choices: pl.Expr, count: int) -> pl.Expr:
    """`render_question` for a whole frame: `choices` is a list column of at most `count` texts in every row."""
    lines = [pl.lit(f"\n{LETTERS[i]}. ") + choices.list.get(i, null_on_oob=True) for i in range(count)]
    return pl.concat_str([record, pl.lit(f"\n\nQuestion: {question}"), *lines], ignore_nulls=True)
