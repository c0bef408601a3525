"""The reward reads any text, and only the first box counts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.grpo.rewards import boxed_letter, right_letter

pieces = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from(["\\boxed{", "}", "A", "E", "F", " ", "\n", "\\boxed{B}", "\\"])),
    max_size=12,
).map("".join)


@given(text=st.one_of(st.text(), pieces))
def test_any_text_is_read(text: str) -> None:
    letter = boxed_letter(text)
    assert letter is None or letter in "ABCDE"
    # Said again without the expression under test: the first "\boxed{", blanks, one letter, blanks, "}".
    boxes = [re.sub(r"\s", "", part.split("}")[0]) for part in text.split("\\boxed{")[1:] if "}" in part]
    letters = [box for box in boxes if box in tuple("ABCDE")]
    assert letter == (letters[0] if letters else None)


@given(
    before=st.text(alphabet=st.characters(exclude_characters="\\")), letter=st.sampled_from("ABCDE"), after=st.text()
)
def test_the_first_box_wins(before: str, letter: str, after: str) -> None:
    assert boxed_letter(f"{before}\\boxed{{{letter}}}{after}\\boxed{{A}}") == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{C}", "C"),
        ("\\boxed{ C }", "C"),
        ("\\boxed{}\\boxed{D}", "D"),
        ("\\boxed{F}", None),
        ("\\boxed{AB}", None),
        ("\\boxed{a}", None),
        ("boxed{A}", None),
        ("\\boxed{A", None),
        ("A", None),
        ("", None),
    ],
)
def test_what_counts_as_a_box(text: str, letter: str | None) -> None:
    assert boxed_letter(text) == letter


def test_right_is_one_and_all_else_nothing() -> None:
    texts = ["so \\boxed{A}", "\\boxed{B} \\boxed{A}", "A", "", "\\boxed{A}"]
    assert right_letter(texts, ["A", "A", "A", "A", "E"], prompts=texts) == [1.0, 0.0, 0.0, 0.0, 0.0]
