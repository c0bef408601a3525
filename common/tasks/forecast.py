"""Forecast: a lab or vital some hours after the time of prediction (C-Reason's 43 features of MIMIC-III in 24 h).

The later value is a column of the same variable as the earlier ones, so its choices stand on the variable's own
statistics. Only values that were measured then are asked for.
"""

from common.questions.codebook import Column
from common.registry.config import Outcome
from common.tasks.prediction import prediction_task


def as_measured(column: Column, outcome: Outcome) -> Column:
    return column


FORECAST = prediction_task("forecast", as_measured)
