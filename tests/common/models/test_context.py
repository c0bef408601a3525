"""Whether a study's lengths go into its model, told before the weights are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, Phi3Config

from common.errors import UserError
from common.models.context import KNOWN, check_context, known_config, room_after
from common.models.policy import load_policy
from common.models.shape import read_config
from common.study import Study, parse_study


@pytest.fixture
def study(tiny_study: dict[str, Any], tiny_model: Path) -> Callable[..., Study]:
    def make(prompt: int, trained: int, evaluated: int, base: str = str(tiny_model)) -> Study:
        values = {
            **tiny_study,
            "sites": {"train": ["somewhere"]},
            "model": {"base": base},
            "grpo": {**tiny_study["grpo"], "max_prompt_tokens": prompt, "max_completion_tokens": trained},
            "evaluation": {**tiny_study["evaluation"], "max_completion_tokens": evaluated},
        }
        return parse_study(values, "test")

    return make


Make = Callable[..., Study]


@pytest.mark.parametrize(
    "config",
    [
        Phi3Config(max_position_embeddings=50).to_dict(),
        GPT2Config(n_positions=50).to_dict(),
        {"text_config": {"max_position_embeddings": 50}},
    ],
)
def test_the_longest_prompt_and_completion_go_in_together(study: Make, config: dict[str, Any]) -> None:
    check_context(study(40, 10, 11), config)
    with pytest.raises(UserError, match="50 positions, .* 40 and grpo.max_.* 11 are 51 together"):
        check_context(study(40, 11, 1), config)
    assert [room_after(config, prompt, 8) for prompt in (1, 42, 43, 49)] == [8, 8, 7, 1]
    with pytest.raises(UserError, match="has 50 tokens, but the model has 50 positions"):
        room_after(config, 50, 8)


def test_a_model_without_positions_has_no_limit(study: Make) -> None:
    check_context(study(10**6, 1, 1), {"model_type": "mamba"})
    assert room_after({"model_type": "mamba"}, 10**6, 8) == 8


def test_the_model_is_refused_before_its_weights_are_read(study: Make, tiny_model: Path, tmp_path: Path) -> None:
    # The tiny model has 2,048 positions; this folder has no weights at all.
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    long = study(2040, 9, 1, str(tmp_path))
    for read in (lambda: load_policy(long, tmp_path), lambda: read_config(long, None)):
        with pytest.raises(UserError, match="2,048 positions"):
            read()
    load_policy(study(2040, 8, 8), tiny_model)


def test_the_configuration_is_the_folders_or_a_known_one(study: Make, tiny_model: Path, tmp_path: Path) -> None:
    named = study(9, 9, 9, "microsoft/phi-4")
    assert known_config(named, None) == KNOWN["microsoft/phi-4"]
    found = known_config(named, tiny_model)
    assert found is not None and found["max_position_embeddings"] == 2048
    assert known_config(study(9, 9, 9), None) == found
    assert known_config(named, tmp_path) is None
    assert known_config(study(9, 9, 9, "somebody/something"), None) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        known_config(named, tmp_path)
