"""Signs of reward hacking: figures worked by hand, and no text is an error."""

from hypothesis import given
from hypothesis import strategies as st

from common.grpo.hacking import signs

completions = st.lists(
    st.one_of(st.text(), st.sampled_from(["\\boxed{A}", "as it is so \\boxed{ B }", "\\boxed{", "\\boxed{x}", "{}\\"])),
    min_size=1,
)


def test_letters_that_follow_no_question_are_told() -> None:
    texts = ["\\boxed{A}"] * 3 + ["the value is low so \\boxed{B}", "no box"]
    told = signs(texts, [[1, 2]] * 4 + [[1, 2, 3, 4, 5, 6, 7]], ["A", "B", "C", "D", None])
    # Said 3/4 A and 1/4 B, right a quarter each of A to D.
    assert told.letter_shift == 0.5
    assert told.unreasoned == 3 / 4
    assert told.tokens == 3.0


def test_without_a_box_there_is_nothing_to_tell() -> None:
    told = signs(["", "A"], [[], [1]], ["A", None])
    assert (told.letter_shift, told.unreasoned, told.tokens) == (None, None, 0.5)


@given(texts=completions, letter=st.sampled_from([*"ABCDE", None]))
def test_any_text_is_told_of(texts: list[str], letter: str | None) -> None:
    told = signs(texts, [[0] * len(text) for text in texts], [letter] * len(texts))
    assert all(share is None or 0 <= share <= 1 for share in (told.letter_shift, told.unreasoned))
