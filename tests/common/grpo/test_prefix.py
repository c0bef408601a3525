"""Which rows share a prompt."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.grpo.prefix import group_rows, left_pad, padded_left

prompts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(asked=prompts)
def test_rows_are_grouped_by_their_prompt(asked: list[list[int]]) -> None:
    first, group = group_rows(*left_pad(asked, 0, torch.device("cpu")))
    assert len(first) == len({tuple(prompt) for prompt in asked})
    assert [asked[i] for i in first[group].tolist()] == asked


@settings(max_examples=50, deadline=None)
@given(asked=prompts)
def test_padding_moves_to_the_left_and_tokens_keep_their_order(asked: list[list[int]]) -> None:
    ids, mask = left_pad(asked, 9, torch.device("cpu"))
    turned = mask.argsort(dim=-1, descending=True, stable=True)
    right = ids.gather(-1, turned), mask.gather(-1, turned)
    for given_rows in ((ids, mask), right):
        moved, kept = padded_left(*given_rows)
        assert torch.equal(moved, ids) and torch.equal(kept, mask)
