"""What every task has in common: a name, and a way from a registry to questions.

A question is a row of `common.questions.building.SCHEMA`. Nothing ties it to a table or to letters: the record is the
prompt's text, and a task whose answer is no letter leaves `choices` empty and `answer` null and gives the right answer
as `reference`; it is then rewarded and scored by comparing texts (`common/grpo/rewards.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from common.questions.building import Built
from common.questions.codebook import Codebook
from common.registry.registry import Registry
from common.study import Questions


class Build(Protocol):
    """At most `per_patient` questions about each record of `patients` (all that can be asked if None).

    A question depends on (seed, patient, what is asked) and the codebook only.
    """

    def __call__(
        self,
        registry: Registry,
        patients: Iterable[str],
        codebook: Codebook,
        spec: Questions,
        seed: int,
        per_patient: int | None,
    ) -> Built: ...


@dataclass(frozen=True)
class Task:
    """One way to turn a registry into questions; `name` stands in the question frame's `task`."""

    name: str
    build: Build
