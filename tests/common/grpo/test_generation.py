"""Generation on shared prompts against transformers' own, and draws against the model's distribution."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from common.errors import UserError
from common.grpo import generation
from common.grpo.generation import sample
from common.grpo.prefix import left_pad
from common.study import PrefixRoute

VOCABULARY, PAD = 100, 0
ROUTES = ("expanded", "packed", "plain")

PROMPTS = [[5, 9, 31], [7], [44, 2, 81, 16, 60, 23, 90], [5, 9, 32]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("eos", [[], [3], list(range(50, 100))])
def test_greedy_is_what_transformers_generates(model: nn.Module, eos: list[int], route: PrefixRoute) -> None:
    ids, mask = left_pad(PROMPTS, PAD, torch.device("cpu"))
    generated = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=9,
        eos_token_id=eos or None,
        pad_token_id=PAD,
    )
    expected = []
    for row in generated[:, ids.shape[1] :].tolist():
        ends = [i for i, token in enumerate(row) if token in eos]
        expected.append(row[: ends[0] + 1] if ends else row)
    assert sample(model, PROMPTS, 1, 9, 0.0, eos, PAD, route) == expected
    # A group's completions lie together, in the order of the prompts.
    assert sample(model, PROMPTS, 3, 9, 0.0, eos, PAD, route) == [row for row in expected for _ in range(3)]
    # Of a group that several processes share, a part.
    parts = [2, 1, 3, 1]
    want = [row for row, count in zip(expected, parts, strict=True) for _ in range(count)]
    assert sample(model, PROMPTS, parts, 9, 0.0, eos, PAD, route) == want
    assert len({tuple(row) for row in expected}) > 1


def test_the_seed_decides_the_sample(model: nn.Module) -> None:
    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return sample(model, PROMPTS, 4, 6, 1.0, [3], PAD)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({tuple(row) for row in drawn(1)[:4]}) > 1, "the completions of a group are drawn apart"


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_tokens_come_as_often_as_the_model_says(random_model: Callable[..., nn.Module], temperature: float) -> None:
    model = random_model()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature
    expected = logits.double().softmax(-1).numpy()
    draws = 20_000
    torch.manual_seed(5)
    completions = sample(model, PROMPTS[:1], draws, 1, temperature, [3], PAD)
    assert {len(row) for row in completions} == {1}
    counts = torch.bincount(torch.tensor(completions)[:, 0], minlength=VOCABULARY).numpy()
    assert (expected * draws).min() > 5 and expected.max() > 2 / VOCABULARY
    assert chisquare(counts, expected / expected.sum() * draws).pvalue > 1e-3


def test_a_second_token_is_drawn_given_the_first(random_model: Callable[..., nn.Module]) -> None:
    model, eos = random_model(), list(range(50, VOCABULARY))
    torch.manual_seed(6)
    completions = [row for row in sample(model, PROMPTS[:1], 20_000, 2, 0.1, eos, PAD) if len(row) == 2]
    first = max({row[0] for row in completions}, key=lambda token: sum(row[0] == token for row in completions))
    seconds = torch.tensor([row[1] for row in completions if row[0] == first])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*PROMPTS[0], first]])).logits[0, -1] / 0.1
    expected = logits.double().softmax(-1)
    # Rare tokens together, so that every class is expected at least five times.
    often = expected * len(seconds) >= 5
    counts = torch.bincount(seconds, minlength=VOCABULARY)
    observed = [*counts[often].tolist(), counts[~often].sum().item()]
    shares = [*expected[often].tolist(), expected[~often].sum().item()]
    if shares[-1] == 0:
        observed, shares = observed[:-1], shares[:-1]
    assert len(shares) > 10
    assert chisquare(observed, [share / sum(shares) * len(seconds) for share in shares]).pvalue > 1e-3


@pytest.mark.parametrize("route", ROUTES)
def test_finished_rows_stop_and_the_others_go_on(model: nn.Module, route: PrefixRoute) -> None:
    eos = list(range(80, VOCABULARY))
    torch.manual_seed(3)
    completions = sample(model, PROMPTS, 8, 6, 1.0, eos, PAD, route)
    assert len(completions) == len(PROMPTS) * 8
    for row in completions:
        assert not set(row[:-1]) & set(eos), "tokens after the end"
        assert row[-1] in eos or len(row) == 6, "it stopped without an end"
    assert {1, 6} <= {len(row) for row in completions}


def test_the_routes_draw_the_same_tokens(model: nn.Module) -> None:
    """From the same uniform numbers, also once rows of some prompts, and all rows of one, have left the batch."""
    drawn = []
    for route in ROUTES:
        torch.manual_seed(8)
        drawn.append(sample(model, PROMPTS, 5, 12, 1.0, list(range(60, VOCABULARY)), PAD, route))
    assert drawn[0] == drawn[1] == drawn[2]
    ends = [max(len(row) for row in drawn[0][5 * n :][:5]) for n in range(len(PROMPTS))]
    assert min(ends) < max(ends), "no prompt ended before another"


def test_auto_shares_keys_once_the_copies_are_large(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def watched(*given: object) -> bool:
        shares.append(decide(*given))
        return shares[-1]

    decide = generation.shares_keys
    monkeypatch.setattr(generation, "shares_keys", watched)
    # 2 layers, 4 prompts of at most 7 tokens and 3 new ones, 3 rows each, keys and values of 2 heads of 8, float32
    copies = 2 * 4 * 3 * (7 + 3) * 2 * 2 * 8 * 4
    for limit in (copies, copies - 1):
        monkeypatch.setattr(generation, "COPIES_AT_MOST", limit)
        sample(model, PROMPTS, 3, 3, 1.0, [], PAD)
        sample(model, PROMPTS, 1, 3, 1.0, [], PAD)
    assert shares == [False, False, True, False]


def test_a_model_that_reaches_back_a_window_is_not_shared(random_model: Callable[..., nn.Module]) -> None:
    windowed = random_model(sliding_window=4)
    with pytest.raises(UserError, match="window of tokens"):
        sample(windowed, PROMPTS, 3, 3, 1.0, [], PAD, "packed")
    assert len(sample(windowed, PROMPTS, 3, 3, 1.0, [], PAD, "auto")) == 12
