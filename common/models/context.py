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


def check_context(study: Study, config: dict[str, Any]) -> None:
    """Whether the longest prompt and the longest completion of the study go into the model together.

    Args:
        config: values of a config.json; where they name no number of positions, there is no limit.

    Raises:
        UserError: they do not.
    """
    # GPT-2's family says n_positions; models that see more than text keep their text part in a table of its own.
    text = config.get("text_config", config)
    positions = text.get("max_position_embeddings", text.get("n_positions"))
    if positions is None:
        return
    prompt = study.grpo.max_prompt_tokens
    lengths = {"grpo": study.grpo.max_completion_tokens, "evaluation": study.evaluation.max_completion_tokens}
    for table, completion in lengths.items():
        if prompt + completion > positions:
            raise UserError(
                f"model.base: {study.model.base} has {positions:,} positions, but grpo.max_prompt_tokens {prompt:,} "
                f"and {table}.max_completion_tokens {completion:,} are {prompt + completion:,} together.",
                "Lower one of them, or choose a base model with a longer context.",
            )
