"""What a model weighs, from its config.json alone: built without memory, so that any architecture is counted whole."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from common.models.adapters import add_adapter
from common.models.context import KNOWN, check_context
from common.study import Study


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
        UserError: none of them, or the study's prompts and completions are longer than the model's context.
    """
    base = study.model.base
    place = folder or Path(base)
    if (place / "config.json").is_file():
        config = AutoConfig.from_pretrained(place)
    elif folder is None and base in KNOWN:
        config = AutoConfig.for_model(**KNOWN[base])
    else:
        raise UserError(
            f"{place}: there is no config.json, so what model.base weighs is not known.",
            "Give the folder of the model's config.json with --config.",
        )
    check_context(study, config.to_dict())
    return config


def shape_of(study: Study, config: PreTrainedConfig) -> Shape:
    """Lay out the study's model, without weights."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, study.model.dtype))
        size = sum(p.nbytes for p in base.parameters())
        model = add_adapter(base, study.model, study.seed) if study.model.trainable == "lora" else base
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Shape(base, size, sum(p.nbytes for p in base.parameters()) - size, trained)
