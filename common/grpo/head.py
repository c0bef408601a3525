"""From hidden states to log-probabilities, without logits of a whole batch standing in memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from common.grpo.ranks import largest

KEPT_AT_MOST = 2**22
"""Logits that may be kept for the backward pass; more are computed in chunks, and again in the backward pass."""
CHUNK = 2**20
"""Logits of a chunk (4 MiB in float32)."""


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits `[..., V]` in float32 of hidden states `[..., D]`."""
    return model.get_output_embeddings()(hidden).float()


def token_logps(model: PreTrainedModel, hidden: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it is drawn from.

    Args:
        hidden: `[S, D]`; tokens: `[S]`.

    Returns:
        logps `[S]` and entropies `[S]` (nats, no gradient), both at `temperature`.
    """

    def score(states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        logps = (head(model, states) / temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = -(logps.exp() * logps).sum(-1)
        return logps.gather(-1, chosen.unsqueeze(-1)).squeeze(-1), entropy

    vocabulary, most = model.config.vocab_size, largest(len(tokens))
    if most * vocabulary <= KEPT_AT_MOST:
        return score(hidden, tokens)
    size = max(1, CHUNK // vocabulary)
    # As many as the process with the most tokens has; the last ones may be empty.
    sizes = [min(size, max(0, len(tokens) - start)) for start in range(0, most, size)]
    chunks = zip(hidden.split(sizes), tokens.split(sizes), strict=True)
    parts = [checkpoint(score, states, chosen, use_reentrant=False) for states, chosen in chunks]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropy for _, entropy in parts])
