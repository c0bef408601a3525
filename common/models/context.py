"""How many tokens a base model can hold, read from its config.json before anything of it is loaded."""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.study import Study

KNOWN: dict[str, dict[str, Any]] = {
    "microsoft/phi-4": {
        "model_type": "phi3",
        "vocab_size": 100352,
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "max_position_embeddings": 16384,
        "pad_token_id": 100349,
    }
}
"""Configurations of hub models that shipped studies name, so that they can be planned without a network."""


def known_config(study: Study, folder: Path | None) -> dict[str, Any] | None:
    """Values of the base model's config.json: of `folder`, of `model.base` where it is one, or of a known hub name.

    Raises:
        UserError: the file is not JSON.
    """
    file = (folder or Path(study.model.base)) / "config.json"
    if not file.is_file():
        return KNOWN.get(study.model.base) if folder is None else None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: not valid JSON ({error}).", "Give the folder of a whole model.") from None


def positions_of(config: dict[str, Any]) -> int | None:
    """Tokens that a model of this config.json holds; None where it names no limit."""
    # GPT-2's family says n_positions; models that see more than text keep their text part in a table of its own.
    text = config.get("text_config", config)
    return text.get("max_position_embeddings", text.get("n_positions"))


def check_context(study: Study, config: dict[str, Any]) -> None:
    """Whether the longest prompt and the longest completion of training go into the model together.

    Evaluation asks for UP TO so many tokens: an answer ends where the model's positions do.

    Raises:
        UserError: they do not.
    """
    positions = positions_of(config)
    prompt, completion = study.grpo.max_prompt_tokens, study.grpo.max_completion_tokens
    if positions is not None and prompt + completion > positions:
        raise UserError(
            f"model.base: {study.model.base} has {positions:,} positions, but grpo.max_prompt_tokens {prompt:,} "
            f"and grpo.max_completion_tokens {completion:,} are {prompt + completion:,} together.",
            "Lower one of them, or choose a base model with a longer context.",
        )


def room_after(config: dict[str, Any], prompt: int, wanted: int) -> int:
    """Tokens of an answer of up to `wanted` that fit behind a prompt of so many tokens.

    Raises:
        UserError: none.
    """
    positions = positions_of(config)
    room = wanted if positions is None else min(wanted, positions - prompt)
    if room < 1:
        raise UserError(
            f"A test question has {prompt:,} tokens, but the model has {positions:,} positions.",
            "Choose a base model with a longer context, or leave features out of the records.",
        )
    return room
