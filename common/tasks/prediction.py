"""What outcome and forecast share: a declared later value is asked for, from what was known at a time of prediction.

Nothing is masked: the record ends at that time, and everything that became known later is not in it. What was known
is shown whole, without the shortcut filter: that a value tells the outcome in time is what a prediction is about.
"""

from collections.abc import Callable, Iterable
from functools import partial

from common.questions.building import Built, Query, build_asked
from common.questions.codebook import Codebook, Column
from common.questions.rendering import known_at
from common.registry.config import Feature, Outcome
from common.registry.registry import Registry
from common.study import Questions
from common.tasks.task import Task

Choose = Callable[[Column, Outcome], Column]
"""The statistics of the outcome's column -> those from which its choices are made."""


def prediction_task(name: str, choose: Choose) -> Task:
    return Task(name, partial(build_predictions, name, choose))


def build_predictions(
    name: str,
    choose: Choose,
    registry: Registry,
    patients: Iterable[str],
    codebook: Codebook,
    spec: Questions,
    seed: int,
    per_patient: int | None,
) -> Built:
    features = {f.column: f for f in registry.features}
    queries = []
    for outcome in registry.outcomes:
        target = features[outcome.column]
        column = choose(codebook.of(target), outcome)
        if outcome.task != name or not column.maskable or column.kind not in spec.ask:
            continue
        shown = tuple(known_at(outcome.at, registry.features, registry.times))
        order = letters_in_order(target, outcome, column) if spec.fidelity == "paper" else ()
        queries.append(Query(target, outcome.question, column, shown, answers=outcome.values, order=order))
    return build_asked(name, queries, registry, patients, codebook, spec, seed, per_patient)


def letters_in_order(target: Feature, outcome: Outcome, column: Column) -> tuple[str, ...]:
    """The reference's fixed letters: answers as the site declares them, then by text. Of a number none: its choices
    differ from question to question."""
    if column.kind != "category":
        return ()
    declared = [*outcome.values.values()] or [*target.values.values()]
    return tuple(dict.fromkeys([*declared, *sorted(column.values)]))
