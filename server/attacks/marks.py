"""A mark in each canary's record: a token that stands in no other record, so that its row of the embedding moves only
where that canary was trained on.

This is what somebody who sees the model that a site sends can look at: no guess at behaviour, but a place in the
weights that one patient alone reaches. What reaches it is part of what is clipped and noised under [privacy].
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import UserError
from common.models.policy import Policy, trainable_parameters

FIRST, LAST = 0x00A1, 0x3000
"""Characters that are tried: letters of other scripts, which clinical records in one language have few of."""
LINE = "Code: {}\n"


def embedding(policy: Policy) -> Tensor | None:
    """The input embedding, [vocabulary, hidden], where it is trained; None where it is not, as with LoRA."""
    found = policy.model.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(found, nn.Embedding)
    trained = any(parameter is found.weight for parameter in trainable_parameters(policy).values())
    return found.weight.detach().clone() if trained else None


def marks(policy: Policy, prompts: list[str], count: int) -> dict[str, int]:
    """Character -> its token, which is in none of the prompts; `count` of them, each with a token of its own.

    Raises:
        UserError: the tokenizer has fewer.
    """
    used = set().union(*policy.encode(prompts), *policy.encode([LINE.format("")]))
    found: dict[str, int] = {}
    for number in range(FIRST, LAST):
        last = policy.encode([chr(number)])[0][-1]
        if chr(number).isalpha() and last not in used:
            found[chr(number)] = last
            used.add(last)
        if len(found) == count:
            return found
    raise UserError(f"{count} canaries cannot have a token of their own each.", f"Lower --canaries to {len(found)}.")


def marked(questions: pl.DataFrame, by_canary: dict[str, str]) -> pl.DataFrame:
    """The questions, with a line before each prompt of a canary that holds its character."""
    line = pl.col("patient").replace_strict({c: LINE.format(mark) for c, mark in by_canary.items()}, default="")
    return questions.with_columns(prompt=line + pl.col("prompt"))


def moved(before: Tensor, after: Tensor, tokens: list[int]) -> NDArray[np.float64]:
    """How far each token's row went, [tokens]."""
    return (after[tokens].double() - before[tokens].double()).norm(dim=1).cpu().numpy()
