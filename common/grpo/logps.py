"""Log-probabilities of completions, each distinct prompt computed once: the pass that GRPO learns from.

Three routes (`grpo.prefix_route`) give the same numbers up to floating-point summation order; `auto` takes one of the
first two (docs/design.md, Shared prefixes):

- `expanded`: the prompts, then the completions on the prompts' keys and values expanded over each group. Fastest;
  keeps every layer's activations for the backward pass.
- `packed`: one row without padding, layers computed again in the backward pass (common/grpo/packed.py). Leanest.
- `plain`: nothing is shared. What the others are compared with.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.grpo.attention import reaches_back_whole
from common.grpo.head import token_logps
from common.grpo.packed import packed_hidden
from common.grpo.prefix import causal_model, expand, group_rows, padded_left, read_prompts
from common.grpo.ranks import largest
from common.study import PrefixRoute

KEPT_AT_MOST = 256 * 2**20
"""Bytes that `auto` lets the expanded route keep for the backward pass, by `expanded_bytes`. A constant, not what the
machine has free: the routes round differently, and the same study gives the same bytes on every machine."""


def completion_logps(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_length: int,
    temperature: float,
    route: PrefixRoute = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every completion token.

    Args:
        input_ids: `[B, P + C]`, prompt padded on either side, completion right-padded; attention_mask: the same
            shape; rows in any order.

    Returns:
        logps `[B, C]` and entropies `[B, C]` (nats, no gradient), both at `temperature`; what stands behind a
        completion's end has no meaning.

    Raises:
        UserError: the packed route, and the model's attention is not one that can be computed so.
    """
    inner = causal_model(model)
    prompts, completions = input_ids[:, :-completion_length], input_ids[:, -completion_length:]
    prompt_mask, completion_mask = attention_mask[:, :-completion_length], attention_mask[:, -completion_length:]
    if route == "plain":
        first = group = torch.arange(len(prompts), device=prompts.device)
    else:
        first, group = group_rows(prompts, prompt_mask)
    if route == "auto":
        kept = largest(expanded_bytes(inner, len(first), prompts.shape[1], *completions.shape))
        route = "packed" if kept > KEPT_AT_MOST and reaches_back_whole(inner) else "expanded"
    asked, asked_mask = padded_left(prompts[first], prompt_mask[first])
    if route != "packed":
        hidden = expanded_hidden(inner, asked, asked_mask, completions, completion_mask, group)
        logps, entropies = token_logps(inner, hidden.flatten(0, 1), completions.flatten(), temperature)
        return logps.view_as(completions), entropies.view_as(completions)
    hidden = packed_hidden(inner, asked, asked_mask, completions, completion_mask, group)
    real = completion_mask.bool()
    logps, entropies = token_logps(inner, hidden, completions[real], temperature)
    grid = logps.new_zeros(completions.shape)
    return grid.masked_scatter(real, logps), grid.masked_scatter(real, entropies)


def expanded_bytes(model: PreTrainedModel, prompts: int, prompt_length: int, rows: int, length: int) -> int:
    """Bytes that the expanded route keeps for the backward pass, all parameters trained, the head apart.

    An estimate: what every linear layer writes, twice over for what stands between them, and each row's expanded
    keys and values.
    """
    written = sum(layer.out_features for layer in model.base_model.modules() if isinstance(layer, nn.Linear))
    tokens = prompts * prompt_length + rows * length
    keys = rows * (prompt_length + length) * model.config.num_hidden_layers * 2 * model.config.hidden_size
    return (2 * tokens * written + keys) * model.dtype.itemsize


def expanded_hidden(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    completions: Tensor,
    completion_mask: Tensor,
    group: Tensor,
) -> Tensor:
    """Hidden states `[B, C, D]` that the completions' tokens are read from.

    Args:
        prompts: `[N, P]` distinct prompts, left-padded; prompt_mask: `[N, P]`.
        completions: `[B, C]`, right-padded; completion_mask: `[B, C]`; group: `[B]`, the prompt of each.
    """
    prefix = read_prompts(model, prompts, prompt_mask)
    hidden = prefix.hidden[group].unsqueeze(1)
    length = completions.shape[1]
    if largest(length) == 1:
        return hidden
    # Completions of one token enter with it where another process has longer ones, and nothing is read from there.
    entered = max(1, length - 1)
    start = prompt_mask.sum(-1, keepdim=True)[group]
    rest = model.base_model(
        input_ids=completions[:, :entered],
        attention_mask=torch.cat([prompt_mask[group], completion_mask[:, :entered]], dim=1),
        position_ids=start + torch.arange(entered, device=start.device),
        past_key_values=expand(model, prefix, group),
        use_cache=True,
    ).last_hidden_state
    return torch.cat([hidden, rest], dim=1)[:, :length]
