"""Prompts that go through the model once, and which rows share one.

A clinical prompt is long and its completions are short, and GRPO asks the same prompt `group` times. The
prompt's keys and values are computed once and handed to every completion of the group (by indexing, so that
the backward pass adds the completions' gradients up in the one prompt). Positions are counted per row from
its first real token; rotary attention depends on their differences only.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
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

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[N, H_kv, P, d]` of each layer."""
        out = []
        for layer in self.cache.layers:
            assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
            out.append((layer.keys, layer.values))
        return out


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


def padded_left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows `ids [N, P]`, `mask [N, P]` with their padding moved to the left."""
    order = mask.argsort(dim=-1, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)


def expand(model: PreTrainedModel, prefix: Prefix, rows: Tensor) -> DynamicCache:
    """Keys and values of prompt `rows[b]` for each completion b; `rows [B]`."""
    cache = DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(prefix.layers):
        cache.update(keys.index_select(0, rows), values.index_select(0, rows), index)
    return cache


def group_rows(prompts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows share a prompt.

    Args:
        prompts: `[B, P]`, padded on either side; mask: `[B, P]`, 1 at their tokens.

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


def left_pad(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows as ids `[N, P]` and mask `[N, P]`, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
