"""The packed route: a micro-batch as one row of tokens, each prompt once, its completions behind the prompts.

Layers without attention do not ask where a token stands, so the row holds no padding at all: completions of unequal
length cost what they hold. Position numbers start again behind the prompt for each completion. Every layer is
computed again in the backward pass, so that what is kept is one hidden state a token and layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.grpo.attention import Packing, share_prefix


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Layers run in here keep their input alone for the backward pass (gradient checkpointing)."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        # Caches do not go with it, and other passes use them.
        model.activation_checkpointing_disable()


def packed_hidden(
    model: PreTrainedModel,
    prompts: Tensor,
    prompt_mask: Tensor,
    completions: Tensor,
    completion_mask: Tensor,
    group: Tensor,
) -> Tensor:
    """Hidden states that the completions' tokens are read from.

    Args:
        prompts: `[N, P]` distinct prompts; prompt_mask: `[N, P]`, 1 at their tokens, padded on either side.
        completions: `[B, C]`; completion_mask: `[B, C]`, 1 at their tokens, padded on the right.
        group: `[B]`, the prompt of each completion.

    Returns:
        `[S, D]` for the S tokens where completion_mask is 1, in that order.

    Raises:
        UserError: the model's attention cannot be computed on a packed row.
    """
    device = prompts.device
    lengths = prompt_mask.sum(-1)
    ends = lengths.cumsum(0)
    # The last token of a completion predicts nothing that is scored, so it does not enter.
    inside = completion_mask[:, 1:].bool()
    by_group = torch.argsort(group, stable=True)
    places = torch.zeros_like(completions[:, 1:])
    within = inside[by_group]
    entered = ends[-1] + torch.arange(int(within.sum()), device=device)
    places[by_group] = torch.zeros_like(places).masked_scatter(within, entered)
    packing = Packing(
        [(end - length, end) for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)],
        *grids(places, inside, group, len(prompts)),
    )
    start = lengths[group].unsqueeze(1) + torch.arange(inside.shape[1], device=device)
    ids = torch.cat([prompts[prompt_mask.bool()], completions[:, :-1][by_group][within]])
    positions = torch.cat([(prompt_mask.cumsum(-1) - 1)[prompt_mask.bool()], start[by_group][within]])
    share_prefix(model)
    with recomputed(model):
        hidden = model.base_model(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            # The layout says who attends to whom; without any mask transformers would make one of the row's square.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            packing=packing,
        ).last_hidden_state[0]
    read_at = torch.cat([ends[group].unsqueeze(1) - 1, places], dim=1)
    return hidden[read_at[completion_mask.bool()]]


def grids(places: Tensor, inside: Tensor, group: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Each group's rows of `places` and `inside` `[B, C - 1]`, cut to its longest completion."""
    cut, real = [], []
    for number in range(count):
        rows = (group == number).nonzero().squeeze(-1)
        width = int(inside[rows].sum(-1).max())
        cut.append(places[rows, :width])
        real.append(inside[rows, :width])
    return cut, real
