"""What a model weighs, from its config.json alone: built without memory, so that any architecture is counted whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from common.models.adapters import add_adapter
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
"""Shapes of hub models that shipped studies name, so that they can be planned without a network."""


@dataclass(frozen=True)
class Shape:
    """One model with its trainable part."""

    model: PreTrainedModel
    """The causal LM, on no device; adapters are in its layers."""
    base_bytes: int
    """Weights but for adapters, in the study's type."""
    adapter_bytes: int
    trainable: int
    """Numbers that are trained."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def written(self) -> int:
        """Numbers that the linear layers of all layers write for a token."""
        return sum(m.out_features for m in self.model.base_model.modules() if isinstance(m, nn.Linear))

    @property
    def cached(self) -> int:
        """Keys and values that a token leaves in the cache, over all layers."""
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        return int(2 * config.num_key_value_heads * head * config.num_hidden_layers)


def read_config(study: Study, folder: Path | None) -> PreTrainedConfig:
    """The base model's configuration: of `folder`, of `model.base` where it is one, or of a known hub name.

    Raises:
        UserError: none of them.
    """
    base = study.model.base
    place = folder or Path(base)
    if (place / "config.json").is_file():
        return AutoConfig.from_pretrained(place)
    if folder is None and base in KNOWN:
        values = dict(KNOWN[base])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    raise UserError(
        f"{place}: there is no config.json, so what model.base weighs is not known.",
        "Give the folder of the model's config.json with --config.",
    )


def shape_of(study: Study, config: PreTrainedConfig) -> Shape:
    """Lay out the study's model, without weights."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, study.model.dtype))
        size = sum(p.nbytes for p in base.parameters())
        model = add_adapter(base, study.model, study.seed) if study.model.trainable == "lora" else base
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Shape(base, size, sum(p.nbytes for p in base.parameters()) - size, trained)
