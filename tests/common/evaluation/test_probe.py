"""Pass rates of the tiny model, which answers with some letter."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from common.evaluation.probe import pass_rates
from common.models.policy import Policy, load_policy
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study
from common.tasks.site_questions import site_questions

SHIPPED = Path(__file__).parents[3] / "site_configs" / "synthetic" / "synthetic-north.toml"


@pytest.fixture(scope="module")
def make(tiny_study: dict, tiny_model: Path) -> Callable[..., Study]:
    def study(**curriculum: object) -> Study:
        tables = {"sites": {"train": ["synthetic-north"]}, "model": {"base": str(tiny_model)}}
        return parse_study({**tiny_study, **tables, "curriculum": curriculum}, "test")

    return study


@pytest.fixture(scope="module")
def questions(make: Callable[..., Study]) -> pl.DataFrame:
    return site_questions(load_registry(read_registry_config(SHIPPED)), make()).train.head(40)


@pytest.fixture(scope="module")
def policy(make: Callable[..., Study], tiny_model: Path) -> Policy:
    return load_policy(make(), tiny_model)


def test_rates_are_shares_of_the_completions(
    make: Callable[..., Study], policy: Policy, questions: pl.DataFrame
) -> None:
    rates = pass_rates(policy, questions, make(completions=4))
    assert sorted(rates["question_id"]) == sorted(questions["question_id"])
    assert set(rates["pass_rate"]) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert rates["pass_rate"].n_unique() > 2, "the model is neither always right nor never"


def test_the_order_and_repetition_of_questions_do_not_matter(
    make: Callable[..., Study], policy: Policy, questions: pl.DataFrame
) -> None:
    once = pass_rates(policy, questions, make())
    assert pass_rates(policy, pl.concat([questions.reverse(), questions[:7]]), make()).equals(once)


def test_over_all_letters_the_rates_are_the_share_of_boxed_answers(
    make: Callable[..., Study], policy: Policy, questions: pl.DataFrame
) -> None:
    """The same answers are sampled whichever letter is right, so each answer is right once at most."""
    total = [
        pass_rates(policy, questions.with_columns(answer=pl.lit(i, dtype=pl.Int64)), make())["pass_rate"]
        for i in range(5)
    ]
    assert all(0 < value <= 1 for value in sum(total[1:], start=total[0]))
