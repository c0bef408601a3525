"""Masked value: one present value of a record is hidden, the rest of the record says which it was.

C-Reason (arXiv 2505.02722) calls it denoising. Of an hourly table one cell is hidden: a variable in one time window.
"""

from common.questions.building import MASKED_VALUE as NAME
from common.questions.building import build_counted
from common.tasks.task import Task

MASKED_VALUE = Task(NAME, build_counted)
