"""Ask a policy questions and read its answers (method.md, Evaluation): greedy, two readings reported.

`boxed` is the letter in the first `\\boxed{}` of the completion. `likely` continues the completion, cut before
that box, with the policy's cue for the answer and takes the likeliest of the offered letters; `likelihoods` are the
probabilities of the offered letters there, in the order of the choices, which sum to 1.
"""

import polars as pl
import torch

from common.grpo.generation import sample
from common.grpo.head import head
from common.grpo.prefix import causal_model, left_pad, read_prompts
from common.grpo.rewards import BOXED, boxed_letter
from common.models.context import room_after
from common.models.policy import Policy
from common.study import Evaluation

LETTERS = "ABCDE"
BATCH = 256
"""Questions a forward pass; the answers do not depend on it beyond summation order."""


def answer(policy: Policy, questions: pl.DataFrame, spec: Evaluation) -> pl.DataFrame:
    """`questions` (docs/design.md) with `completion`, `boxed`, `likely` (choice indices, `boxed` null if unread)
    and `likelihoods` (list of Float64).

    A letter beyond the offered choices reads as null; so does a question without choices, whose answer is the
    completion.
    """
    texts = [policy.prompt_text(s, p) for s, p in questions.select("system", "prompt").iter_rows()]
    counts = questions["choices"].list.len().to_list()
    ids = policy.encode(texts) if texts else []
    completions = [""] * len(ids)
    likely: list[int | None] = [None] * len(ids)
    likelihoods: list[list[float] | None] = [None] * len(ids)
    # Prompts of like length go together, so that little is spent on padding.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    cue = len(policy.encode([policy.answer_cue])[0])
    policy.model.eval()
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = len(ids[rows[-1]]) + cue
        room = room_after(causal_model(policy.model).config.to_dict(), longest, spec.max_completion_tokens)
        sampled = sample(policy.model, [ids[i] for i in rows], 1, room, 0.0, policy.eos, policy.pad)
        for i, text in zip(rows, policy.tokenizer.batch_decode(sampled, skip_special_tokens=True), strict=True):
            completions[i] = text
        lettered = [i for i in rows if counts[i]]
        cued = [texts[i] + before_box(completions[i]) + policy.answer_cue for i in lettered]
        for i, scores in zip(lettered, letter_scores(policy, cued), strict=True):
            offered = scores[: counts[i]]
            likely[i] = int(offered.argmax())
            likelihoods[i] = offered.double().softmax(-1).tolist()
    boxed = [choice_index(text, count) for text, count in zip(completions, counts, strict=True)]
    return questions.with_columns(
        pl.Series("completion", completions, dtype=pl.String),
        pl.Series("boxed", boxed, dtype=pl.Int64),
        pl.Series("likely", likely, dtype=pl.Int64),
        pl.Series("likelihoods", likelihoods, dtype=pl.List(pl.Float64)),
    )


def choice_index(completion: str, count: int) -> int | None:
    letter = boxed_letter(completion)
    if letter is None:
        return None
    index = LETTERS.index(letter)
    return index if index < count else None


def before_box(completion: str) -> str:
    """The reasoning, without the first box and what follows it."""
    match = BOXED.search(completion)
    return completion[: match.start()].rstrip() if match else completion.rstrip()


@torch.no_grad()
def letter_scores(policy: Policy, texts: list[str]) -> torch.Tensor:
    """Logits of the letters A-E as each text's next token, shape (texts, 5), on the CPU."""
    if not texts:
        return torch.empty(0, len(LETTERS))
    model = causal_model(policy.model)
    ids, mask = left_pad(policy.encode(texts), policy.pad, model.device)
    tokens = torch.tensor([row[-1] for row in policy.encode(list(LETTERS))], device=model.device)
    return head(model, read_prompts(model, ids, mask).hidden)[:, tokens].cpu()
