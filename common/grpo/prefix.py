"""Each prompt goes through the model once per group, in generation and in learning.

A clinical prompt is long and its completions are short, and GRPO asks the same prompt `group` times. The
prompt's keys and values are computed once and handed to every completion of the group (by indexing, so that
the backward pass adds the completions' gradients up in the one prompt). The result equals running every row
whole up to floating-point summation order.

Two passes instead of one row: the prompt without the completion, then the completions on the prompt's keys
and values. Positions are counted per row from its first real token; rotary attention depends on their
differences only.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal LM inside `model`: PEFT adapters stay active because they sit in its layers."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


@dataclass(frozen=True)
class Prefix:
    """Prompts after one pass: keys and values of every layer, and the last real position's hidden state."""

    cache: DynamicCache
    mask: Tensor
    """[N, P], 1 at real tokens, left-padded"""
    hidden: Tensor
    """[N, D] at the last prompt token"""


def read_prompts(model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor) -> Prefix:
    """Run N left-padded prompts `prompt_ids [N, P]` once."""
    cache = DynamicCache(config=model.config)
    out = model.base_model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    return Prefix(cache, prompt_mask, out.last_hidden_state[:, -1])


def expand(model: PreTrainedModel, prefix: Prefix, rows: Tensor) -> DynamicCache:
    """Keys and values of prompt `rows[b]` for each completion b; `rows [B]`."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(prefix.cache.layers):
        assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
        cache.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), index)
    return cache


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits `[..., V]` in float32 of hidden states `[..., D]`."""
    return model.get_output_embeddings()(hidden).float()


def group_rows(prompts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows share a prompt.

    Args:
        prompts: `[B, P]`, left-padded; mask: `[B, P]`.

    Returns:
        first `[N]`: a row index of each distinct prompt, in order of appearance; group `[B]`: its number.
    """
    seen: dict[bytes, int] = {}
    first: list[int] = []
    group: list[int] = []
    for row, (ids, keep) in enumerate(zip(prompts.cpu(), mask.cpu().bool(), strict=True)):
        key = ids[keep].numpy().tobytes()
        if key not in seen:
            seen[key] = len(first)
            first.append(row)
        group.append(seen[key])
    device = prompts.device
    return torch.tensor(first, device=device), torch.tensor(group, device=device)


def completion_logps(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_length: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every completion token, each distinct prompt computed once.

    Args:
        input_ids: `[B, P + C]`, prompt left-padded, completion right-padded; attention_mask: the same shape.

    Returns:
        logps `[B, C]` and entropies `[B, C]` (nats, no gradient), both at `temperature`.
    """
    inner = causal_model(model)
    prompts, completions = input_ids[:, :-completion_length], input_ids[:, -completion_length:]
    prompt_mask, completion_mask = attention_mask[:, :-completion_length], attention_mask[:, -completion_length:]
    first, group = group_rows(prompts, prompt_mask)
    prefix = read_prompts(inner, prompts[first], prompt_mask[first])
    hidden = prefix.hidden[group].unsqueeze(1)
    if completion_length > 1:
        mask = torch.cat([prompt_mask, completion_mask[:, :-1]], dim=1)
        start = prompt_mask.sum(-1, keepdim=True)
        later = inner.base_model(
            input_ids=completions[:, :-1],
            attention_mask=mask,
            position_ids=start + torch.arange(completion_length - 1, device=start.device),
            past_key_values=expand(inner, prefix, group),
            use_cache=True,
        ).last_hidden_state
        hidden = torch.cat([hidden, later], dim=1)
    logits = head(inner, hidden) / temperature
    chosen = -cross_entropy(logits.flatten(0, 1), completions.flatten(), reduction="none").view_as(completions)
    with torch.no_grad():
        logps = log_softmax(logits, dim=-1)
        entropy = -(logps.exp() * logps).sum(-1)
    return chosen, entropy


def left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows as ids `[N, P]` and mask `[N, P]`, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: list[list[int]],
    group: int,
    max_tokens: int,
    temperature: float,
    eos: list[int],
    pad: int,
) -> list[list[int]]:
    """`group` completions of each prompt, prompt read once; temperature 0 takes the likeliest token.

    Draws come from torch's global generator, so a caller seeds it.

    Returns:
        `len(prompts) * group` completions, a prompt's together, the end token included where one was drawn.
    """
    inner = causal_model(model)
    device = inner.device
    ids, mask = left_pad(prompts, pad, device)
    prefix = read_prompts(inner, ids, mask)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(group)
    cache = expand(inner, prefix, rows)
    hidden, mask = prefix.hidden[rows], prefix.mask[rows]
    position = mask.sum(-1, keepdim=True)
    ends = torch.tensor(eos, device=device)
    alive = torch.arange(len(rows), device=device)
    out: list[list[int]] = [[] for _ in rows]
    for step in range(max_tokens):
        logits = head(inner, hidden)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            # One uniform number a row through the cumulative distribution: torch.multinomial draws one a token
            # of the vocabulary.
            total = (logits / temperature).softmax(-1).cumsum(-1)
            point = torch.rand(len(total), 1, device=device) * total[:, -1:]
            token = torch.searchsorted(total, point, right=True).squeeze(-1).clamp(max=total.shape[-1] - 1)
        for row, value in zip(alive.tolist(), token.tolist(), strict=True):
            out[row].append(value)
        keep = (~torch.isin(token, ends)).nonzero().squeeze(-1)
        if step == max_tokens - 1 or len(keep) == 0:
            break
        if len(keep) < len(alive):
            # Finished rows leave the batch, so that one long answer does not keep the group at full cost.
            alive, token, mask, position = alive[keep], token[keep], mask[keep], position[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden = inner.base_model(
            input_ids=token.unsqueeze(-1),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        position = position + 1
    return out
