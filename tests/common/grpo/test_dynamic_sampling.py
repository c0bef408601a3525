"""Which groups are replaced, by what, and for how long."""

from collections.abc import Sequence

from common.grpo.dynamic_sampling import replace_agreeing


class Draws:
    """Groups are named by their question and try; `same` of the questions have groups that agree."""

    def __init__(self, same: set[int]) -> None:
        self.same = same
        self.calls: list[list[int]] = []

    def sample(self, questions: Sequence[int], number: int) -> list[tuple[int, int]]:
        self.calls.append(list(questions))
        return [(question, number) for question in questions]

    def run(self, first: list[int], questions: int, tries: int, seed: int = 0) -> tuple[list[int], list]:
        return replace_agreeing(
            first, questions, tries, lambda n: seed + n, self.sample, lambda question, group: question in self.same
        )


def test_agreeing_groups_alone_are_replaced_in_their_place() -> None:
    draws = Draws({1, 2})
    chosen, groups = draws.run([0, 1, 2, 3], 50, 3)
    assert (chosen[0], chosen[3]) == (0, 3) and not {1, 2} & set(chosen)
    assert groups[0] == (0, 0) and groups[1] == (chosen[1], 1)
    assert len(set(chosen)) == 4 and len(draws.calls) == 2


def test_tries_are_bounded_and_no_question_is_asked_twice() -> None:
    draws = Draws(set(range(40)))
    chosen, groups = draws.run([5, 6, 7], 40, 4)
    asked = [question for call in draws.calls for question in call]
    assert len(draws.calls) == 5 and len(asked) == len(set(asked)) == 15
    assert [question for question, _ in groups] == chosen == draws.calls[-1]


def test_with_too_few_other_questions_the_last_ones_stay() -> None:
    chosen, _ = Draws({0, 1, 2}).run([0, 1, 2], 4, 9)
    assert sorted(chosen) == [1, 2, 3]


def test_the_seed_decides() -> None:
    same = {1, 2}
    assert Draws(same).run([0, 1, 2], 90, 2) == Draws(same).run([0, 1, 2], 90, 2)
    assert Draws(same).run([0, 1, 2], 90, 2) != Draws(same).run([0, 1, 2], 90, 2, seed=7)
