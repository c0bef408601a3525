"""The text of a question: `[Section]` blocks of `Name (unit): value` lines, the question, the lettered choices.

Everything for many patients is a polars expression; the functions on strings say the same for one question.
"""

from collections.abc import Sequence

import polars as pl

from common.questions.codebook import Codebook
from common.questions.printing import print_values
from common.registry.config import Feature

LETTERS = "ABCDE"
MASK = "[MASK]"
WHOLE_SECTION = "//section/"
"""Before a section's name: the column of its whole block."""
SYSTEM = "Answer without a disclaimer. Give the final answer, the letter only, within \\boxed{}."


def label(feature: Feature) -> str:
    return f"{feature.name} ({feature.unit})" if feature.unit else feature.name


def label_and_time(feature: Feature) -> str:
    """A variable stands in several sections, one for each time, so a question names the section."""
    return f"{label(feature)} in [{feature.section}]" if feature.variable else label(feature)


def ask_masked(feature: Feature) -> str:
    return f"What is the masked value of {label_and_time(feature)}?"


def ask_shown(feature: Feature) -> str:
    return f"What is the value of {label_and_time(feature)}?"


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
    return frame.select(print_values(f, codebook.of(f).decimals).alias(f.column) for f in features)


def line_columns(values: pl.DataFrame, features: Sequence[Feature]) -> pl.DataFrame:
    """Every value's `Name (unit): value` line with its end, over the columns of `value_columns`; null where missing.

    Beside them one column per section with its whole block, which most questions show as it is.
    """
    lines = values.select((pl.lit(f"{label(f)}: ") + pl.col(f.column) + pl.lit("\n")).alias(f.column) for f in features)
    blocks = [
        pl.concat_str(block_parts(section, inside, None), ignore_nulls=True).alias(WHOLE_SECTION + section)
        for section, inside in by_section(features).items()
    ]
    return lines.with_columns(blocks)


def by_section(features: Sequence[Feature]) -> dict[str, list[Feature]]:
    sections: dict[str, list[Feature]] = {}
    for feature in features:
        sections.setdefault(feature.section, []).append(feature)
    return sections


def block_parts(section: str, features: Sequence[Feature], masked: str | None) -> list[pl.Expr]:
    """A section's heading and lines, to be concatenated without their nulls. Without lines there is no heading."""
    lines = [pl.lit(f"{label(f)}: {MASK}\n") if f.column == masked else pl.col(f.column) for f in features]
    some = pl.any_horizontal(line.is_not_null() for line in lines)
    return [pl.when(some).then(pl.lit(f"[{section}]\n")), *lines]


def shown_with(
    target: Feature, features: Sequence[Feature], times: Sequence[str], codebook: Codebook, masked: bool = True
) -> list[Feature]:
    """The features that stand in the record of a question about `target`, itself included, in registry order.

    What becomes known later than the target is not shown (`times`: the moments, the earliest first). With the target
    masked, the features that would give it away are left out: the codebook's excluded pairs, and the same quantity at
    other times, since most of it goes on as it was (a forecast is where its course is shown).
    """
    excluded = {target.quantity, *codebook.excluded.get(target.quantity, ())} if masked else set()
    shown = known_at(target.known, features, times)
    return [f for f in shown if f.column == target.column or f.quantity not in excluded]


def known_at(moment: str, features: Sequence[Feature], times: Sequence[str]) -> list[Feature]:
    """The features whose values are known at a moment, in registry order."""
    later = times[times.index(moment) + 1 :]
    return [f for f in features if f.known not in later]


def record_parts(shown: Sequence[Feature], masked: str | None, features: Sequence[Feature]) -> list[pl.Expr]:
    """The record as texts to be concatenated without their nulls, over the columns of `line_columns`.

    Args:
        shown: features of the record; masked: the column printed as `[MASK]`, if any; features: all of the registry.

    A missing value has no line and a section without lines no heading.
    """
    whole = by_section(features)
    parts: list[pl.Expr] = []
    for section, inside in by_section(shown).items():
        if len(inside) == len(whole[section]) and masked not in [f.column for f in inside]:
            parts.append(pl.col(WHOLE_SECTION + section))
        else:
            parts += block_parts(section, inside, masked)
    return parts


def prompt_expression(record: Sequence[pl.Expr], question: str, choices: pl.Expr, count: int) -> pl.Expr:
    """`render_question` for a whole frame: `choices` is a list column of at most `count` texts in every row.

    One concatenation: a prompt is long, and copying it is what takes time.
    """
    lines = [pl.lit(f"\n{LETTERS[i]}. ") + choices.list.get(i, null_on_oob=True) for i in range(count)]
    return pl.concat_str([*record, pl.lit(f"\nQuestion: {question}"), *lines], ignore_nulls=True)
