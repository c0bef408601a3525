"""A study small enough to run in a test: two synthetic hospitals, an unseen one, a random Phi-3 of a few thousand
parameters."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"
SITES = {"a": 120, "b": 90, "elsewhere": 60}


@pytest.fixture(scope="session")
def small_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site files."""
    folder = tmp_path_factory.mktemp("sites")
    for seed, (site, patients) in enumerate(SITES.items(), start=1):
        text = f'extends = "{REGISTRY}"\nsite = "{site}"\n[synthetic]\npatients = {patients}\nseed = {seed}\n'
        (folder / f"{site}.toml").write_text(text)
    return folder


@pytest.fixture(scope="session")
def tiny_model(small_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: random weights, tokenizer trained on the sites' own questions."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from common.models.tokenizer import train_tokenizer
    from common.questions.site_questions import site_questions

    folder = tmp_path_factory.mktemp("model")
    study = parse_study({"name": "t", "sites": {"train": ["a"]}, "model": {"base": "x"}}, "test")
    registry = load_registry(read_registry_config(small_sites / "a.toml"))
    tokenizer = train_tokenizer(site_questions(registry, study).train["prompt"].to_list(), 512)
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small_study(small_sites: Path, tiny_model: Path) -> Callable[..., Study]:
    """A study over the small sites; keyword arguments replace whole tables."""

    def make(**tables: object) -> Study:
        values = {
            "name": "small",
            "sites": {"train": ["a", "b"], "unseen": ["elsewhere"]},
            "model": {"base": str(tiny_model)},
            "questions": {"ask": ["category"], "per_patient": 2},
            "grpo": {"group_size": 2, "prompts_per_step": 4, "max_completion_tokens": 4, "learning_rate": 1e-2},
            "rounds": {"rounds": 2, "local_steps": 2, "validation_patients": 12, "deadline_s": 60},
            "evaluation": {"patients_per_site": 15, "questions_per_patient": 2, "bootstrap": 100,
                           "max_completion_tokens": 4},
            "simulation": {"site_configs": str(small_sites), "workers": 2},
        }  # fmt: skip
        return parse_study(values | tables, "test")

    return make
