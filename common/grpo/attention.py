"""Attention over a shared prefix, as an attention function of transformers (its documented AttentionInterface).

A model set to it computes what scaled-dot-product attention computes, unless a forward pass is given one of two
layouts as a keyword, which transformers hands through to every layer:

- `packing`: one row of tokens, each prompt once and its completions behind (common/grpo/packed.py);
- `prefix`: rows that decode on keys and values which several of them share (common/grpo/generation.py).

No token attends across groups, and no mask is ever as large as the row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.errors import UserError

NAME = "shared_prefix"


@dataclass(frozen=True)
class Packing:
    """Where the groups lie in one row of T tokens: all prompts in order, then each group's completions in order."""

    prompts: list[tuple[int, int]]
    """First and one past the last position of each prompt."""
    completions: list[Tensor]
    """`[g, c]` for each group: position of each completion's token; behind a shorter one's end any position."""
    real: list[Tensor]
    """`[g, c]`, true at tokens of the row."""


@dataclass(frozen=True)
class SharedKeys:
    """Keys and values of one layer each, shared by the rows that decode; no padding."""

    layers: list[list[tuple[Tensor, Tensor]]]
    """layers[l][n]: keys and values `[H_kv, P_n, d]` of prompt n."""
    rows: list[Tensor]
    """For each prompt the decoding rows that go on from it, ascending."""


def reaches_back_whole(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that came before, and none to a window of it."""
    return not any(DynamicCache(config=model.config).is_sliding)


def share_prefix(model: PreTrainedModel) -> None:
    """Set `model` to this attention; it stays, since recomputed layers meet it again in the backward pass.

    Raises:
        UserError: the model wants another attention than this.
    """
    if not reaches_back_whole(model):
        raise unsuited("reaches back a window of tokens only")
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise unsuited("is not built on transformers' attention interface")


def unsuited(reason: str) -> UserError:
    return UserError(
        f"model.base: its attention {reason}, so a group cannot read its prompt together.",
        "Set grpo.prefix_route = 'expanded'.",
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    prefix: SharedKeys | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' contract: query `[B, H, T, d]`, key and value `[B, H_kv, S, d]`; returns `[B, T, H, d]`.

    Raises:
        UserError: a layout is asked for and the layer wants more than plain causal attention.
    """
    if packing is None and prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise unsuited("caps its scores or has sinks")
    if packing is not None:
        return attend_packed(query, key, value, packing, options["scaling"], options["dropout"]), None
    assert prefix is not None
    shared = prefix.layers[module.layer_idx]  # type: ignore[index]
    return attend_shared(query, key, value, shared, prefix.rows, options["scaling"]), None


def attend_packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float) -> Tensor:
    """Prompts attend to themselves, completions to their prompt and themselves; `[1, T, H, d]`."""
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    prompts, completions = [], []
    for (start, end), places, real in zip(packing.prompts, packing.completions, packing.real, strict=True):
        one = slice(start, end)
        out = scaled_dot_product_attention(
            query[:, :, one], key[:, :, one], value[:, :, one], is_causal=True, **options
        )
        prompts.append(out[0].transpose(0, 1))
        size, width = places.shape
        if width:
            rows = [rearrange(x, places) for x in (query, key, value)]
            keys = torch.cat([key[:, :, one].expand(size, -1, -1, -1), rows[1]], dim=2)
            values = torch.cat([value[:, :, one].expand(size, -1, -1, -1), rows[2]], dim=2)
            mask = torch.ones(width, end - start + width, dtype=torch.bool, device=query.device).tril(end - start)
            out = scaled_dot_product_attention(rows[0], keys, values, attn_mask=mask, **options)
            completions.append(out.transpose(1, 2)[real])
    return torch.cat([*prompts, *completions]).unsqueeze(0)


def rearrange(states: Tensor, places: Tensor) -> Tensor:
    """`[1, H, T, d]` at `places [g, c]`, as `[g, H, c, d]`."""
    size, width = places.shape
    picked = states[0].index_select(1, places.flatten())
    return picked.unflatten(1, (size, width)).transpose(0, 1)


def attend_shared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: list[tuple[Tensor, Tensor]],
    rows: list[Tensor],
    scale: float,
) -> Tensor:
    """One new token a row: `query [R, H, 1, d]` on the shared keys and on its own `key [R, H_kv, t, d]`.

    The rows of a prompt are one matrix product with its keys, which are read once for all of them (bifurcated
    attention, Athiwaratkun et al. 2024, arXiv 2403.08845). Returns `[R, 1, H, d]`.
    """
    count, heads, _, size = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(count, kv_heads, heads // kv_heads, size) * scale
    own = grouped @ key.transpose(2, 3)  # [R, H_kv, H / H_kv, t]
    out = torch.empty_like(grouped)
    for (keys, values), mine in zip(shared, rows, strict=True):
        if len(mine) == 0:
            continue
        asked = grouped[mine].transpose(0, 1)  # [H_kv, r, H / H_kv, d]
        before = (asked.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, (len(mine), -1)).transpose(0, 1)
        weights = torch.cat([before, own[mine]], dim=-1).softmax(-1, dtype=torch.float32).to(value.dtype)
        far, near = weights.split([keys.shape[1], key.shape[2]], dim=-1)
        read = (far.transpose(0, 1).flatten(1, 2) @ values).unflatten(1, (len(mine), -1)).transpose(0, 1)
        out[mine] = read + near @ value[mine]
    return out.reshape(count, 1, heads, size)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
