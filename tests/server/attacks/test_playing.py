"""Attacks from end to end: a training that memorises its patients is found out, by each attack on its own."""

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from common.evaluation.answering import LETTERS
from common.grpo.prefix import left_pad
from common.model import Model
from common.models.policy import Policy, load_policy
from common.privacy import Privacy
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study
from common.tasks.site_questions import site_questions
from server.attacks.attack import attack
from server.attacks.inversion import words_told
from server.cli import main
from tests.command import call

REGISTRY = Path(__file__).parents[3] / "site_configs" / "synthetic" / "_registry.toml"
EACH = 14
"""Canaries, and members: together all training patients of the site."""
NOISED = Privacy(clip=0.1, noise_multiplier=2.0, sample_rate=0.4, patients_per_step=6, delta=1e-2, accountant="rdp")


@pytest.fixture
def few(small_study: Callable[..., Study], tmp_path: Path) -> tuple[Study, pl.DataFrame]:
    """A study of a site with few patients; of each the two questions with the most choices, where luck counts least."""
    place = tmp_path / "few.toml"
    place.write_text(f'extends = "{REGISTRY}"\nsite = "few"\n[synthetic]\npatients = 40\nseed = 1\n')
    study = small_study(
        sites={"train": ["few"], "public": ["elsewhere"]},
        # The tiny model boxes its letter at once, as the built-in one does; another's is read behind a cue.
        model={"base": "built-in"},
        questions={"ask": ["category"], "per_patient": 10},
        grpo={"group_size": 8, "prompts_per_step": 12, "max_completion_tokens": 4, "learning_rate": 3e-3},
        rounds={"rounds": 1, "local_steps": 1, "validation_patients": 0},
        simulation={"site_configs": str(tmp_path)},
    )
    questions = site_questions(load_registry(read_registry_config(place)), study).train
    longest = questions.sort(pl.col("choices").list.len(), descending=True, maintain_order=True)
    return study, longest.filter(pl.int_range(pl.len()).over("patient") < 2)


def memorise(policy: Policy, study: Study, questions: pl.DataFrame, folder: Path) -> None:
    """Supervised steps on the rewarded letters: in the place of GRPO, which takes minutes to memorise."""
    texts = [policy.prompt_text(s, p) + policy.answer_cue for s, p in questions.select("system", "prompt").iter_rows()]
    ids, mask = left_pad(policy.encode(texts), policy.pad, torch.device("cpu"))
    letters = torch.tensor([row[-1] for row in policy.encode([LETTERS[answer] for answer in questions["answer"]])])
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        logits = policy.model(input_ids=ids, attention_mask=mask).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, letters).backward()
        optimiser.step()


def test_what_was_memorised_is_found_out(
    few: tuple[Study, pl.DataFrame], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.attacks.attack.train", memorise)
    study, questions = few
    found = attack(study, questions, tiny_model, EACH, seed=1)
    assert found.upper is None
    assert found.right == found.guesses == 6 and found.lower > 0.4
    assert found.auc > 0.9


def test_words_of_a_step_drown_in_a_sum_and_in_noise(few: tuple[Study, pl.DataFrame], tiny_model: Path) -> None:
    study, questions = few
    policy = load_policy(study, tiny_model)
    alone, summed = (words_told(policy, study, questions, 6, sites) for sites in (1, 3))
    noised = words_told(policy, study.model_copy(update={"privacy": NOISED}), questions, 6)
    assert alone > 0.9 > summed + 0.05 > noised + 0.05
    assert abs(noised - 0.5) < 0.15


def test_the_command_prints_what_was_found(few: tuple[Study, pl.DataFrame], tiny_model: Path, tmp_path: Path) -> None:
    study = few[0]
    rounds = study.rounds.model_copy(update={"local_steps": 1})
    short = study.model_copy(update={"model": Model(base=str(tiny_model)), "rounds": rounds})
    (tmp_path / "study.toml").write_text(short.to_toml())
    done = call(main, "audit-privacy", tmp_path / "study.toml", "--canaries", EACH)
    assert done.returncode == 0, done.stderr
    assert "no bound: the study has no [privacy]" in done.stdout
    assert f"guesses about {EACH} canaries" in done.stdout
    words = re.search(r"words from a single step +AUC ([\d.]+)", done.stdout)
    assert words is not None and float(words[1]) > 0.9
