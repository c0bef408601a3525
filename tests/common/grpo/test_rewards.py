"""The reward reads any text, and only the first box counts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.evaluation.answering import before_box, choice_index
from common.grpo.rewards import (
    boxed_letter,
    boxed_text,
    exact_match,
    length_penalty,
    readable,
    reward_terms,
    right_answer,
    right_letter,
)
from common.study import Rewards

pieces = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(["\\boxed{", "{", "}", "A", "E", "F", " ", "\n", "\\boxed{B}", "\\boxed{A", "\\", "\0"]),
        st.characters(categories=["Cs", "Cc", "Mn", "Zs"]),
    ),
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


@given(text=st.one_of(st.text(), pieces), right=st.text())
def test_every_reading_takes_any_text(text: str, right: str) -> None:
    said = boxed_text(text)
    assert said is None or f"\\boxed{{{said}}}" in text
    assert exact_match([text], [right]) in ([0.0], [1.0])
    for letter in ("A", None):
        assert right_answer([text], [letter], [right]) <= readable([text], [letter])
    index = choice_index(text, 2)
    assert index is None or boxed_letter(text) == "AB"[index]
    assert text.startswith(before_box(text))


def test_a_long_run_of_open_boxes_is_read_in_time() -> None:
    text = "\\boxed{ " * 20_000
    assert boxed_letter(text) is None and boxed_text(text) is None


def test_length_costs_nothing_until_near_the_end() -> None:
    assert length_penalty(80, 100, 0.8) == 0.0
    assert length_penalty(90, 100, 0.8) == pytest.approx(-0.5)
    assert length_penalty(100, 100, 0.8) == pytest.approx(-1.0)


def test_only_terms_with_a_weight_are_computed() -> None:
    assert reward_terms(Rewards(), 10) == [(right_answer, 1.0)]
    terms = reward_terms(Rewards(answer=2.0, format=0.5, length=0.25), 10)
    said = {"completions": ["\\boxed{B}", "A"], "completion_ids": [[1] * 10, [1]]}
    asked = {"letter": ["A", "A"], "reference": ["x", "x"]}
    assert [weight for _, weight in terms] == [2.0, 0.5, 0.25]
    assert [term(**said, **asked) for term, _ in terms] == [[0.0, 0.0], [1.0, 0.0], [pytest.approx(-1.0), 0.0]]
