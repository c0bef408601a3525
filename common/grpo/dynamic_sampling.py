"""Groups whose rewards agree teach nothing: replace them by other questions (DAPO: Yu et al. 2025, arXiv 2503.14476,
section 3.2, with a bound on the tries).

Which questions a step takes then depends on the patients' values (`Grpo.data_dependent`).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Group = TypeVar("Group")


def replace_agreeing(
    first: Sequence[int],
    questions: int,
    tries: int,
    seed_of: Callable[[int], int],
    sample: Callable[[Sequence[int], int], list[Group]],
    agrees: Callable[[int, Group], bool],
) -> tuple[list[int], list[Group]]:
    """The questions of a step and their groups of completions.

    Args:
        first: numbers of the questions that the step would take.
        questions: how many there are to draw from.
        tries: how many times agreeing groups are replaced; then those that still agree stay.
        seed_of: the seed of a try, from 1 on.
        sample: the groups of some questions at a try, 0 for `first`.
        agrees: whether the rewards of a question's group are all the same.
    """
    chosen = list(first)
    groups = sample(chosen, 0)
    asked = set(chosen)
    for number in range(1, tries + 1):
        places = [i for i, (question, group) in enumerate(zip(chosen, groups, strict=True)) if agrees(question, group)]
        order: NDArray[np.int64] = np.random.default_rng(seed_of(number)).permutation(questions)
        others = [int(question) for question in order if question not in asked][: len(places)]
        if not others:
            break
        asked |= set(others)
        for place, question, group in zip(places, others, sample(others, number), strict=False):
            chosen[place], groups[place] = question, group
    return chosen, groups
