"""Training questions of one synthetic hospital and a study whose base model is the tiny one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM

from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study
from common.tasks.site_questions import site_questions

SHIPPED = Path(__file__).parents[3] / "site_configs" / "synthetic" / "synthetic-north.toml"


@pytest.fixture(scope="session")
def make_study(tiny_study: dict[str, Any], tiny_model: Path) -> Callable[..., Study]:
    """A study over one site; keyword arguments go into its `grpo` table, `trainable` and `dtype` into `model`."""

    def make(trainable: str = "all", seed: int = 1, dtype: str = "float32", **grpo: Any) -> Study:
        values = {
            **tiny_study,
            "seed": seed,
            "sites": {"train": ["synthetic-north"]},
            "model": {"base": str(tiny_model), "trainable": trainable, "dtype": dtype},
            "grpo": {**tiny_study["grpo"], **grpo},
            "rounds": {**tiny_study["rounds"], "rounds": 3},
        }
        return parse_study(values, "test")

    return make


@pytest.fixture(scope="session")
def questions(make_study: Callable[..., Study]) -> pl.DataFrame:
    return site_questions(load_registry(read_registry_config(SHIPPED)), make_study()).train.head(30)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., nn.Module]:
    """A new model of Phi-3 architecture with grouped key/value heads; `lora` adds factors that are nowhere zero."""

    def make(trainable: str = "all", vocabulary: int = 100, **config: Any) -> nn.Module:
        torch.manual_seed(11)
        values = {
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        model: nn.Module = Phi3ForCausalLM(Phi3Config(**(values | config)))
        if trainable == "lora":
            adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:  # it begins at zero, which would hide A
                    nn.init.normal_(parameter, std=0.2)
            model = adapted
        return model.train()

    return make


@pytest.fixture(scope="session", params=["all", "lora"])
def model(request: pytest.FixtureRequest, random_model: Callable[..., nn.Module]) -> nn.Module:
    return random_model(request.param)
