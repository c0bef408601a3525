"""What every task has in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from common.questions.codebook import Codebook
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions


class Build(Protocol):
    def __call__(
        self,
        registry: Registry,
        patients: Iterable[str],
        codebook: Codebook,
        spec: Questions,
        seed: int,
        per_patient: int | None,
    ) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Task:
    """One way to turn a registry into questions.

    `name` stands in the question frame's `task`; `asks` picks the features that can be asked;
    `question` is the sentence; `build` makes the question frame (`common.questions.building.SCHEMA`).
    """

    name: str
    asks: Callable[[Iterable[Feature], Codebook, Questions], list[Feature]]
    question: Callable[[Feature], str]
    build: Build
