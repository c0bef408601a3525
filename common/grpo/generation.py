"""Completions sampled from a policy, each prompt read once for all of its completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from common.grpo.attention import SharedKeys, reaches_back_whole, share_prefix
from common.grpo.head import head
from common.grpo.prefix import Prefix, causal_model, expand, left_pad, read_prompts
from common.grpo.ranks import Draws
from common.study import PrefixRoute

COPIES_AT_MOST = 16 * 2**20
"""Bytes of keys and values that `auto` lets each row have to itself. Beyond, a group reads its prompt's together."""


class Completion(NamedTuple):
    """What was sampled behind a prompt."""

    ids: list[int]
    """Tokens, the end token included where one was drawn."""
    logps: list[float | None] | None = None
    """Log-probability of each at the sampling temperature, where another program than the trainer drew them; None in
    place of one that is no number."""


@dataclass
class Decoding:
    """Rows under way: the keys and values that each attends to, and where it stands."""

    cache: DynamicCache
    """Of the whole row, or of the completion alone where `shared` holds the prompts'."""
    mask: Tensor
    """[R, P + t], 1 at real tokens; without meaning where the prompts are shared"""
    position: Tensor
    """[R, 1], of the next token"""
    prompt: Tensor
    """[R], ascending"""
    shared: list[list[tuple[Tensor, Tensor]]] | None

    def keep(self, rows: Tensor) -> None:
        """Finished rows leave the batch, so that one long answer does not keep the group at full cost."""
        self.mask, self.position, self.prompt = self.mask[rows], self.position[rows], self.prompt[rows]
        self.cache.batch_select_indices(rows)

    def step(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        """Hidden state `[R, D]` after `token [R]`."""
        layout = {}
        if self.shared is not None:
            count = len(self.shared[0])
            rows = [(self.prompt == number).nonzero().squeeze(-1) for number in range(count)]
            layout = {"prefix": SharedKeys(self.shared, rows)}
            # Every row's own tokens are real and equally many.
            self.mask = self.mask.new_ones(len(token), 1, 1, 1)
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        hidden = model.base_model(
            input_ids=token.unsqueeze(-1),
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
            **layout,
        ).last_hidden_state[:, -1]
        self.position = self.position + 1
        return hidden


def begin(model: PreTrainedModel, prefix: Prefix, rows: Tensor, share: bool) -> Decoding:
    """Ready to decode from prompt `rows[r]` for each row r."""
    position = prefix.mask.sum(-1, keepdim=True)[rows]
    if not share:
        # One row a prompt needs no copy.
        cache = prefix.cache if len(rows) == len(prefix.mask) else expand(model, prefix, rows)
        return Decoding(cache, prefix.mask[rows], position, rows, None)
    share_prefix(model)
    lengths = prefix.mask.sum(-1).tolist()
    shared = []
    for layer in prefix.layers:
        prompts = zip(*layer, lengths, strict=True)
        shared.append([(keys[:, -length:], values[:, -length:]) for keys, values, length in prompts])
    return Decoding(DynamicCache(config=model.config), prefix.mask[rows], position, rows, shared)


def shares_keys(model: PreTrainedModel, prefix: Prefix, rows: int, max_tokens: int, route: PrefixRoute) -> bool:
    """Whether groups read their prompt's keys and values together, rather than a copy for each row."""
    if route != "auto":
        return route == "packed"
    prompts, width = prefix.mask.shape
    if rows == prompts or not reaches_back_whole(model):
        return False
    kept = sum(keys.nbytes + values.nbytes for keys, values in prefix.layers)
    return kept * rows * (width + max_tokens) // (prompts * width) > COPIES_AT_MOST


def draw(logits: Tensor, temperature: float, draws: Draws) -> Tensor:
    """A token `[R]` from each row of `logits [R, V]`; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    # One uniform number a row through the cumulative distribution: torch.multinomial draws one a token of the
    # vocabulary.
    total = (logits / temperature).softmax(-1).cumsum(-1)
    point = draws(len(total), logits.device) * total[:, -1:]
    return torch.searchsorted(total, point, right=True).squeeze(-1).clamp(max=total.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: list[list[int]],
    group: int | Sequence[int],
    max_tokens: int,
    temperature: float,
    eos: list[int],
    pad: int,
    route: PrefixRoute = "auto",
) -> list[list[int]]:
    """Completions of each prompt, as many as `group` says for all or for each; temperature 0 takes the likeliest token.

    Draws come from torch's global generator, so a caller seeds it, alike in all processes that train together. `route`
    is the study's: `packed` shares the prompts' keys and values, `expanded` and `plain` copy them for each row, `plain`
    computes them for each.

    Returns:
        the completions, a prompt's together, the end token included where one was drawn.

    Raises:
        UserError: keys are to be shared, and the model's attention is not one that can be computed so.
    """
    inner = causal_model(model)
    device = inner.device
    draws = Draws(max_tokens)
    if not prompts:
        draws.finish(device)
        return []
    counts = [group] * len(prompts) if isinstance(group, int) else group
    if route == "plain":
        prompts = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        counts = [1] * len(prompts)
    prefix = read_prompts(inner, *left_pad(prompts, pad, device))
    rows = torch.arange(len(prompts), device=device).repeat_interleave(torch.tensor(counts, device=device))
    decoding = begin(inner, prefix, rows, shares_keys(inner, prefix, len(rows), max_tokens, route))
    hidden = prefix.hidden[rows]
    ends = torch.tensor(eos, device=device)
    alive = torch.arange(len(rows), device=device)
    out: list[list[int]] = [[] for _ in rows]
    for step in range(max_tokens):
        token = draw(head(inner, hidden), temperature, draws)
        for row, value in zip(alive.tolist(), token.tolist(), strict=True):
            out[row].append(value)
        keep = (~torch.isin(token, ends)).nonzero().squeeze(-1)
        if step == max_tokens - 1 or len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive, token = alive[keep], token[keep]
            decoding.keep(keep)
        hidden = decoding.step(inner, token)
    draws.finish(device)
    return out
