"""The head in chunks against the head at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.grpo import head as module
from common.grpo.head import token_logps

VOCABULARY = 1000


class Largest(TorchDispatchMode):
    """The most elements that any tensor made in it has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def scored(model: nn.Module, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    logps, entropies = token_logps(model, hidden, tokens, 0.7)
    weights = torch.linspace(0.5, 1.5, len(tokens))
    wanted = [hidden, model.get_output_embeddings().weight]  # type: ignore[operator]
    return logps, entropies, list(torch.autograd.grad((logps * weights).sum(), wanted))


@pytest.mark.parametrize("count", [1, 3, 7, 13])
def test_chunks_change_nothing_but_what_stands_at_once(
    random_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    model = random_model(vocabulary=VOCABULARY, hidden_size=4, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(1)
    hidden, tokens = torch.randn(count, 4, requires_grad=True), torch.randint(0, VOCABULARY, (count,))
    whole = scored(model, hidden, tokens)
    monkeypatch.setattr(module, "KEPT_AT_MOST", 3 * VOCABULARY)
    monkeypatch.setattr(module, "CHUNK", 2 * VOCABULARY + 1)
    with Largest() as largest:
        chunked = scored(model, hidden, tokens)
    # The gradient of the head's weight is as large as the weight.
    assert largest.elements <= 4 * VOCABULARY
    for ours, theirs in zip((*chunked[:2], *chunked[2]), (*whole[:2], *whole[2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_log_probabilities_and_entropy_are_those_of_the_softmax(random_model: Callable[..., nn.Module]) -> None:
    model = random_model(vocabulary=VOCABULARY)
    torch.manual_seed(2)
    hidden, tokens = 5 * torch.randn(9, 32), torch.randint(0, VOCABULARY, (9,))
    logps, entropies = token_logps(model, hidden, tokens, 0.7)
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    chances = torch.distributions.Categorical(logits=(hidden.double() @ weight.double().T) / 0.7)
    torch.testing.assert_close(logps.double(), chances.log_prob(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), chances.entropy(), rtol=1e-5, atol=1e-5)
