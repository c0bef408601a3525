"""A model, its tokenizer and what of it is trained.

The federated state is the flat, sorted dict of the tensors that a run changes: every parameter (`all`), or what
`model.lora.average` says (`lora`; with A frozen, B alone, whose mean over sites is the exact mean of the products).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from common.errors import UserError
from common.model import BUILT_IN
from common.models.adapters import add_adapter, changing_names
from common.models.context import check_context
from common.study import Study


@dataclass(frozen=True)
class Policy:
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prefill: str
    """Text that opens the assistant's turn (C-Reason: "Let's think step by step.")."""
    answer_cue: str
    """Text after which the next token is the letter: the reading by likelihood."""
    changing: tuple[str, ...]
    """Names of the tensors that a run changes, sorted. A round may train some of them only."""

    @property
    def eos(self) -> list[int]:
        assert self.tokenizer.eos_token_id is not None
        return [int(self.tokenizer.eos_token_id)]

    @property
    def pad(self) -> int:
        assert self.tokenizer.pad_token_id is not None
        return int(self.tokenizer.pad_token_id)

    def prompt_text(self, system: str, prompt: str) -> str:
        return prompt_text(self.tokenizer, self.prefill, system, prompt)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that already hold their special tokens."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def prompt_text(tokenizer: PreTrainedTokenizerBase, prefill: str, system: str, prompt: str) -> str:
    """The whole text before the completion.

    A chat template that drops the system turn gets that text in front of the user turn.
    """
    if tokenizer.chat_template is None:
        return f"{system}\n\n{prompt}\n{prefill}"
    user = {"role": "user", "content": prompt}
    turns = [{"role": "system", "content": system}, user]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    alone = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    if text == alone:
        user = {"role": "user", "content": f"{system}\n\n{prompt}"}
        text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text + prefill


def prefill_of(study: Study) -> str:
    return "" if study.model.base == BUILT_IN else "Let's think step by step."


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """What the round under way trains."""
    return {n: p for n, p in sorted(policy.model.named_parameters()) if p.requires_grad}


def changing_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """What a run changes, by sorted name."""
    parameters = dict(policy.model.named_parameters())
    return {name: parameters[name] for name in policy.changing}


def trainable_state(policy: Policy) -> dict[str, Tensor]:
    """Copies of the tensors that a run changes on the CPU, by sorted name."""
    return {n: p.detach().cpu().clone() for n, p in changing_parameters(policy).items()}


@torch.no_grad()
def load_trainable(policy: Policy, state: dict[str, Tensor]) -> None:
    """Put `state` in place of the tensors that a run changes, bit for bit.

    Raises:
        ValueError: names, shapes or dtypes differ from the policy's.
    """
    own = changing_parameters(policy)
    if set(own) != set(state):
        raise ValueError(f"trainable tensors differ: {sorted(set(own) ^ set(state))[:3]}")
    for name, parameter in own.items():
        value = state[name]
        if value.shape != parameter.shape or value.dtype != parameter.dtype:
            raise ValueError(f"{name}: {value.dtype} {tuple(value.shape)}, expected {parameter.dtype}")
        parameter.copy_(value)


def load_policy(study: Study, folder: str | Path) -> Policy:
    """Load the base model from a folder (or hub name) and make its trainable part ready.

    Raises:
        UserError: the folder holds no model that transformers can load, or one with too short a context for the study.
    """
    place = str(folder)
    if study.model.base != BUILT_IN and (place.startswith((".", "/")) or "\\" in place) and not Path(place).is_dir():
        raise UserError(f"model.base: {place} is not a folder.", "Give a folder with config.json, or a hub name.")
    try:
        # Before the weights, which may be many gigabytes.
        check_context(study, AutoConfig.from_pretrained(place).to_dict())
        tokenizer = AutoTokenizer.from_pretrained(place)
        dtype = getattr(torch, study.model.dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.base: {place} cannot be loaded as a causal language model ({reason}).",
            "Give a folder with config.json, weights and tokenizer files, or a hub name that this machine reaches.",
        ) from None
    base, info = loaded
    if info["missing_keys"]:
        # transformers would go on with random numbers, others at every site.
        raise UserError(
            f"model.base: {place} cannot be loaded as a causal language model (its weights lack "
            f"{sorted(info['missing_keys'])[0]}).",
            "Give a folder whose weights are whole.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: nn.Module = base.eval()
    if study.model.trainable == "lora":
        model = add_adapter(model, study.model, study.seed)
    # After the adapter: a GPU would draw another A than the sites without one. Evaluation runs where training does,
    # and TRL moves the model to the GPU when there is one.
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    cue = "\n\\boxed{" if study.model.base == BUILT_IN else "\n\nTherefore, the answer is \\boxed{"
    return Policy(model, tokenizer, prefill_of(study), cue, changing_names(model, study.model))
