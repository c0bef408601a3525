"""What the attacks are made of: coins and canaries, signals, rates; and what cannot be attacked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study
from common.tasks.site_questions import site_questions
from server.attacks.membership import auc, signals, true_positives
from server.attacks.playing import play
from server.attacks.training import toss


@pytest.fixture
def attacked(small_study: Callable[..., Study], tiny_model: Path) -> tuple[Study, pl.DataFrame]:
    """A study of one site whose steps see each patient several times, and the site's questions."""
    study = small_study(
        sites={"train": ["a"]},
        model={"base": str(tiny_model)},
        questions={"ask": ["category"], "per_patient": 2},
        grpo={"group_size": 4, "prompts_per_step": 8, "max_completion_tokens": 4, "learning_rate": 3e-3},
        rounds={"rounds": 1, "local_steps": 6, "validation_patients": 0},
    )
    place = Path(study.simulation.site_configs) / "a.toml"
    return study, site_questions(load_registry(read_registry_config(place)), study).train


def test_a_canarys_answer_is_wrong_and_all_others_stay(attacked: tuple[Study, pl.DataFrame]) -> None:
    questions = attacked[1].filter(pl.col("choices").list.len() > 1)
    tossed = toss(questions, 20, seed=3)
    assert len(set(tossed.canaries) | set(tossed.members)) == 40 and 8 < len(tossed.inside) < 32
    both = tossed.questions.join(questions.select("question_id", true="answer"), on="question_id")
    canary = both["patient"].is_in(list(tossed.canaries))
    assert ((both["answer"] != both["true"]) == canary).all()
    assert (both["choices"].list.get(both["answer"]) == both["reference"]).all()
    left_out = {*tossed.canaries, *tossed.members} - tossed.inside
    assert set(questions["patient"]) - set(tossed.trained_on["patient"]) == left_out
    assert toss(questions, 20, seed=3).inside == tossed.inside != toss(questions, 20, seed=4).inside
    with pytest.raises(UserError, match="Lower --canaries"):
        toss(questions, 400, seed=3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_and_true_positives_by_hand(drawn: list[tuple[int, bool]]) -> None:
    scores, inside = np.array([s for s, _ in drawn], float), np.array([i for _, i in drawn])
    if inside.all() or not inside.any():
        return
    pairs = [(a, b) for a in scores[inside] for b in scores[~inside]]
    assert auc(scores, inside) == pytest.approx(np.mean([a > b or 0.5 * (a == b) for a, b in pairs]))
    for allowed in (0.001, 0.01, 0.5):
        shares = [
            (scores[inside] > threshold).mean()
            for threshold in [-1.0, *scores]
            if (scores[~inside] > threshold).mean() <= allowed
        ]
        assert true_positives(scores, inside, allowed) == max(shares)


def test_signals_are_means_over_a_patients_questions() -> None:
    questions = pl.DataFrame({"patient": ["p", "q", "p"], "answer": [0, 1, 1]})
    before = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    after = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    found = signals(questions, before, after)
    assert found["patient"].to_list() == ["p", "q"]
    assert found["gain"].to_list() == pytest.approx([(0.4 - 0.2) / 2, 0.0])
    kl = [sum(p * np.log(p / 0.5) for p in row) for row in after]
    assert found["drift"].to_list() == pytest.approx([(kl[0] + kl[2]) / 2, 0.0])


def test_what_cannot_be_attacked_is_refused(attacked: tuple[Study, pl.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Choose from a"):
        play(attacked[0], "nowhere", 4, 1, tmp_path)
    shared = attacked[0].questions.model_copy(update={"codebook": "federated"})
    with pytest.raises(UserError, match="all sites' counts"):
        play(attacked[0].model_copy(update={"questions": shared}), "a", 4, 1, tmp_path)
