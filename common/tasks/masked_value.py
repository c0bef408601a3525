"""Masked value: one present value of a record is hidden, the rest of the record says which it was.

C-Reason (arXiv 2505.02722) calls it denoising.
"""

from common.questions.building import MASKED_VALUE as NAME
from common.questions.building import askable, build_questions
from common.questions.rendering import ask_masked
from common.tasks.task import Task

MASKED_VALUE = Task(name=NAME, asks=askable, question=ask_masked, build=build_questions)
