"""Outcome: which of a few ends a record came to (death, dependency, kidney injury in the next 48 h).

The site declares the question, its time and which values count as one answer (`[[outcomes]]`, task = "outcome").
"""

from dataclasses import replace

from common.questions.codebook import Column
from common.registry.config import Outcome
from common.tasks.prediction import prediction_task


def merged(column: Column, outcome: Outcome) -> Column:
    """The column's statistics with values that count as one answer added up, the most frequent answer first."""
    if column.kind != "category":
        return replace(column, maskable=False)
    totals: dict[str, int] = {}
    for value, count in zip(column.values, column.counts, strict=True):
        answer = outcome.values.get(value, value)
        totals[answer] = totals.get(answer, 0) + count
    ordered = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    return replace(
        column,
        maskable=len(ordered) > 1,
        values=tuple(answer for answer, _ in ordered),
        counts=tuple(count for _, count in ordered),
    )


OUTCOME = prediction_task("outcome", merged)
