"""Shared prefixes against the plain way: each row whole and alone, and transformers' own generation."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import Phi3Config, Phi3ForCausalLM

from common.grpo.prefix import completion_logps, group_rows, left_pad, sample

VOCABULARY, PAD = 100, 0


def random_model(trainable: str = "all") -> nn.Module:
    torch.manual_seed(11)
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = Phi3ForCausalLM(config)
    if trainable == "lora":
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # it begins at zero, which would hide A
                nn.init.normal_(parameter, std=0.2)
        model = adapted
    return model


@dataclass(frozen=True)
class Rows:
    """Rows of several groups in any order: prompt and completion of each, without padding."""

    prompts: list[list[int]]
    completions: list[list[int]]

    def padded(self) -> tuple[Tensor, Tensor, int]:
        """Ids and mask `[B, P + C]` as TRL hands them over, and C."""
        ids, mask = left_pad(self.prompts, PAD, torch.device("cpu"))
        width = max(len(row) for row in self.completions)
        tail = torch.tensor([row + [PAD] * (width - len(row)) for row in self.completions])
        keep = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self.completions])
        return torch.cat([ids, tail], dim=1), torch.cat([mask, keep], dim=1), width


tokens = st.integers(0, VOCABULARY - 1)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=4))
    asked = [prompt for prompt in prompts for _ in range(draw(st.integers(1, 4)))]
    asked = draw(st.permutations(asked))
    completions = [draw(st.lists(tokens, min_size=1, max_size=6)) for _ in asked]
    return Rows(asked, completions)


def alone(model: nn.Module, prompt: list[int], completion: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one completion from the whole row, without padding or cache."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0] / temperature
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.fixture(scope="module", params=["all", "lora"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return random_model(request.param)


@settings(max_examples=60, deadline=None)
@given(batch=rows(), temperature=st.floats(0.5, 2.0), seed=st.integers(0, 2**31))
def test_logps_and_gradients_are_those_of_whole_rows(
    model: nn.Module, batch: Rows, temperature: float, seed: int
) -> None:
    ids, mask, width = batch.padded()
    shared, entropies = completion_logps(model, ids, mask, width, temperature)
    plain = [alone(model, p, c, temperature) for p, c in zip(batch.prompts, batch.completions, strict=True)]
    real = mask[:, -width:].bool()
    expected = torch.cat([logps for logps, _ in plain])
    torch.testing.assert_close(shared[real], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies[real], torch.cat([e for _, e in plain]), rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad
    # Every token with a weight of its own, so that no two rows' gradients can be taken for each other's.
    weights = torch.rand(len(expected), generator=torch.Generator().manual_seed(seed)) + 0.5
    by_prefix = gradient(model, (shared[real] * weights).sum())
    whole = gradient(model, (expected * weights).sum())
    assert (by_prefix - whole).norm() <= 1e-5 * whole.norm()


@settings(max_examples=25, deadline=None)
@given(batch=rows())
def test_rows_are_grouped_by_their_prompt(batch: Rows) -> None:
    ids, mask, width = batch.padded()
    first, group = group_rows(ids[:, :-width], mask[:, :-width])
    distinct = {tuple(prompt) for prompt in batch.prompts}
    assert len(first) == len(distinct)
    assert [batch.prompts[i] for i in first[group].tolist()] == batch.prompts


PROMPTS = [[5, 9, 31], [7], [44, 2, 81, 16, 60, 23, 90], [5, 9, 32]]


@pytest.mark.parametrize("eos", [[], [3], list(range(50, 100))])
def test_greedy_is_what_transformers_generates(model: nn.Module, eos: list[int]) -> None:
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
    assert sample(model, PROMPTS, 1, 9, 0.0, eos, PAD) == expected
    # A group's completions lie together, in the order of the prompts.
    assert sample(model, PROMPTS, 3, 9, 0.0, eos, PAD) == [row for row in expected for _ in range(3)]
    assert len({tuple(row) for row in expected}) > 1


def test_the_seed_decides_the_sample(model: nn.Module) -> None:
    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return sample(model, PROMPTS, 4, 6, 1.0, [3], PAD)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({tuple(row) for row in drawn(1)[:4]}) > 1, "the completions of a group are drawn apart"


@pytest.mark.parametrize("temperature", [0.1, 0.3])
def test_tokens_come_as_often_as_the_model_says(temperature: float) -> None:
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


def test_a_second_token_is_drawn_given_the_first() -> None:
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


def test_finished_rows_stop_and_the_others_go_on(model: nn.Module) -> None:
    eos = list(range(80, VOCABULARY))
    torch.manual_seed(3)
    completions = sample(model, PROMPTS, 8, 6, 1.0, eos, PAD)
    assert len(completions) == len(PROMPTS) * 8
    for row in completions:
        assert not set(row[:-1]) & set(eos), "tokens after the end"
        assert row[-1] in eos or len(row) == 6, "it stopped without an end"
    assert {1, 6} <= {len(row) for row in completions}
