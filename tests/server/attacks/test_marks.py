"""Marks of canaries: a token of its own each, whose row of the embedding moves where the canary is trained on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from common.models.policy import load_policy
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study
from common.tasks.site_questions import site_questions
from server.attacks.marks import embedding, marked, marks, moved
from server.attacks.training import toss, train

EACH = 12


@pytest.fixture
def attacked(small_study: Callable[..., Study], tiny_model: Path) -> tuple[Study, pl.DataFrame]:
    study = small_study(
        sites={"train": ["a"], "public": ["b"]},
        model={"base": "built-in"},
        questions={"ask": ["category"], "per_patient": 1},
        grpo={"group_size": 4, "prompts_per_step": 12, "max_completion_tokens": 4, "learning_rate": 3e-3},
        rounds={"rounds": 1, "local_steps": 12, "validation_patients": 0},
    )
    place = Path(study.simulation.site_configs) / "a.toml"
    return study, site_questions(load_registry(read_registry_config(place)), study).train


def test_a_mark_is_in_its_canarys_prompt_alone_and_its_row_moves_with_it(
    attacked: tuple[Study, pl.DataFrame], tiny_model: Path, tmp_path: Path
) -> None:
    study, questions = attacked
    policy, tossed = load_policy(study, tiny_model), toss(questions, EACH, seed=3)
    tokens = marks(policy, tossed.questions["prompt"].to_list(), EACH)
    by_canary = dict(zip(tossed.canaries, tokens, strict=True))
    tossed = replace(tossed, questions=marked(tossed.questions, by_canary))
    for patient, prompt in tossed.questions.select("patient", "prompt").iter_rows():
        own = {tokens[by_canary[patient]]} if patient in by_canary else set()
        assert set(policy.encode([prompt])[0]) & set(tokens.values()) == own

    before = embedding(policy)
    train(policy, study, tossed.trained_on, tmp_path)
    after = embedding(policy)
    assert before is not None and after is not None
    inside, far = tossed.is_inside(tossed.canaries), moved(before, after, list(tokens.values()))
    assert far[inside].mean() > 2 * far[~inside].mean()
    assert np.median(far[inside]) > far[~inside].max()


def test_without_a_trained_embedding_there_is_none_to_look_at(
    attacked: tuple[Study, pl.DataFrame], tiny_model: Path
) -> None:
    model = attacked[0].model.model_copy(update={"trainable": "lora"})
    assert embedding(load_policy(attacked[0].model_copy(update={"model": model}), tiny_model)) is None


def test_more_canaries_than_tokens_are_refused(attacked: tuple[Study, pl.DataFrame], tiny_model: Path) -> None:
    policy = load_policy(attacked[0], tiny_model)
    with pytest.raises(UserError, match="Lower --canaries to"):
        marks(policy, attacked[1]["prompt"].to_list(), 5000)
