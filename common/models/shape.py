"""What a model weighs, from its config.json alone: built without memory, so that any architecture is counted whole."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from common.models.adapters import add_adapter, changing_names, trained_in_round
from common.models.context import KNOWN, check_context
from common.study import Study
from common.update.tensors import State


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
    down_bytes: int
    """Of all that a run changes: the round's model, as a site gets it that has none before."""
    up_bytes: int
    """Of what a site trains in a round, in its own type; the larger of an odd and an even round."""

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
    weights = dict(model.named_parameters())
    changing: State = {name: weights[name] for name in changing_names(model, study.model)}
    up = max(sum(p.nbytes for p in trained_in_round(study.model, number, changing).values()) for number in (1, 2))
    adapter = sum(p.nbytes for p in base.parameters()) - size
    return Shape(base, size, adapter, trained, sum(p.nbytes for p in changing.values()), up)
