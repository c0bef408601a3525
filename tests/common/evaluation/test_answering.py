"""Two readings of an answer: the letter in the box, and the likeliest of the letters that were offered."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from common.evaluation import answering
from common.evaluation.answering import answer, before_box, choice_index
from common.grpo.prefix import left_pad
from common.grpo.rewards import BOXED
from common.models.policy import Policy, load_policy
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Evaluation, Study, parse_study
from common.tasks.site_questions import site_questions

SHIPPED = Path(__file__).parents[3] / "site_configs" / "synthetic" / "synthetic-north.toml"
LETTERS = "ABCDE"
STEPS = 40


@pytest.fixture(scope="module")
def study(tiny_study: dict[str, Any], tiny_model: Path) -> Study:
    values = {**tiny_study, "sites": {"train": ["synthetic-north"]}, "model": {"base": str(tiny_model)}}
    return parse_study(values, "test")


@pytest.fixture(scope="module")
def questions(study: Study) -> pl.DataFrame:
    return site_questions(load_registry(read_registry_config(SHIPPED)), study).train.head(40)


@pytest.fixture(scope="module")
def policy(study: Study, tiny_model: Path, questions: pl.DataFrame) -> Policy:
    """The tiny model, taught by heart to box one letter or another, or none, so that its answers differ."""
    policy = load_policy(study, tiny_model)
    some = questions.head(20)
    prompts = [policy.prompt_text(s, p) for s, p in some.select("system", "prompt").iter_rows()]
    # Each is taught one of the letters that it offers, every fifth none.
    counts = some["choices"].list.len()
    taught = ["\nno" if n % 5 == 4 else f"\n\\boxed{{{LETTERS[n % count]}}}" for n, count in enumerate(counts)]
    answers = [text + str(policy.tokenizer.eos_token) for text in taught]
    asked, said = policy.encode(prompts), policy.encode(answers)
    ids, mask = left_pad([a + b for a, b in zip(asked, said, strict=True)], policy.pad, torch.device("cpu"))
    label = torch.full_like(ids, -100)
    for row, tokens in enumerate(said):
        label[row, -len(tokens) :] = torch.tensor(tokens)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        policy.model(input_ids=ids, attention_mask=mask, labels=label).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@pytest.fixture(scope="module")
def answered(policy: Policy, questions: pl.DataFrame, study: Study) -> pl.DataFrame:
    return answer(policy, questions, study.evaluation)


def offering(questions: pl.DataFrame, count: int) -> pl.DataFrame:
    """The same prompts with the first `count` choices offered."""
    return questions.with_columns(pl.col("choices").list.head(count))


def test_the_questions_come_back_in_order_with_their_answers(answered: pl.DataFrame, questions: pl.DataFrame) -> None:
    assert_frame_equal(answered.select(questions.columns), questions)
    assert answered.select("completion", "boxed", "likely").dtypes == [pl.String, pl.Int64, pl.Int64]
    assert answered["completion"].n_unique() > 3
    assert {0, 1, None} <= set(answered["boxed"]) and answered["likely"].n_unique() > 1


def test_boxed_is_the_letter_in_the_completion(answered: pl.DataFrame) -> None:
    for text, boxed, choices in answered.select("completion", "boxed", "choices").iter_rows():
        match = BOXED.search(text)
        letter = None if match is None else LETTERS.index(match[1])
        assert boxed == (letter if letter is None or letter < len(choices) else None)


def test_without_a_box_nothing_is_boxed(policy: Policy, questions: pl.DataFrame) -> None:
    short = answer(policy, questions, Evaluation(max_completion_tokens=1))
    assert short["boxed"].null_count() == short.height
    assert short["likely"].null_count() == 0


def test_a_letter_that_is_not_offered_is_not_read(
    policy: Policy, questions: pl.DataFrame, study: Study, answered: pl.DataFrame
) -> None:
    two = answer(policy, offering(questions, 2), study.evaluation)
    assert two["completion"].to_list() == answered["completion"].to_list()
    beyond = answered["boxed"].is_in([2, 3, 4])
    assert beyond.any() and (answered["boxed"].is_in([0, 1])).any()
    assert two.filter(beyond)["boxed"].null_count() == beyond.sum()
    assert two.filter(~beyond)["boxed"].to_list() == answered.filter(~beyond)["boxed"].to_list()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_likely_is_always_offered(policy: Policy, questions: pl.DataFrame, study: Study, count: int) -> None:
    few = answer(policy, offering(questions, count), study.evaluation)
    offered = few["choices"].list.len()
    assert offered.max() == count
    assert ((few["likely"] >= 0) & (few["likely"] < offered)).all()


def test_likely_is_the_likeliest_letter_after_the_reasoning(policy: Policy, answered: pl.DataFrame) -> None:
    """Said again for each question alone, by the model's own forward pass over the whole text."""
    letters = [policy.encode([letter])[0][-1] for letter in LETTERS]
    for row in answered.iter_rows(named=True):
        reasoning = row["completion"].split("\\boxed{")[0].rstrip()
        assert before_box(row["completion"]) == reasoning or BOXED.search(row["completion"]) is None
        text = policy.prompt_text(row["system"], row["prompt"]) + before_box(row["completion"]) + policy.answer_cue
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor(policy.encode([text]))).logits[0, -1]
        scores = [logits[token].item() for token in letters[: len(row["choices"])]]
        assert row["likely"] == scores.index(max(scores))


def test_completions_are_the_models_greedy_ones(policy: Policy, answered: pl.DataFrame, study: Study) -> None:
    for row in answered.head(5).iter_rows(named=True):
        ids = torch.tensor(policy.encode([policy.prompt_text(row["system"], row["prompt"])]))
        longest = study.evaluation.max_completion_tokens
        out = policy.model.generate(  # type: ignore[operator]
            input_ids=ids, do_sample=False, max_new_tokens=longest, eos_token_id=policy.eos, pad_token_id=policy.pad
        )
        assert row["completion"] == policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 7])
def test_the_size_of_a_batch_changes_no_answer(
    policy: Policy,
    questions: pl.DataFrame,
    answered: pl.DataFrame,
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(answering, "BATCH", size)
    assert_frame_equal(answer(policy, questions, study.evaluation), answered)


def test_neither_company_nor_order_change_an_answer(
    policy: Policy, questions: pl.DataFrame, answered: pl.DataFrame, study: Study
) -> None:
    some = questions.sample(15, shuffle=True, seed=1)
    assert_frame_equal(
        answer(policy, some, study.evaluation),
        some.select("question_id")
        .join(answered, on="question_id", how="left", maintain_order="left")
        .select(answered.columns),
    )


def test_no_questions_no_answers(policy: Policy, questions: pl.DataFrame, answered: pl.DataFrame, study: Study) -> None:
    assert_frame_equal(answer(policy, questions.clear(), study.evaluation), answered.clear())


def test_the_model_is_left_as_it_was(policy: Policy, questions: pl.DataFrame, study: Study) -> None:
    policy.model.train()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    answer(policy, questions.head(3), study.evaluation)
    assert not policy.model.training
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in policy.model.named_parameters())


@pytest.mark.parametrize(
    ("completion", "count", "index"),
    [
        ("\\boxed{A}", 2, 0),
        ("\\boxed{B}", 2, 1),
        ("\\boxed{C}", 2, None),
        ("\\boxed{C} or \\boxed{A}", 2, None),
        ("\\boxed{E}", 5, 4),
        ("E", 5, None),
        ("", 5, None),
    ],
)
def test_the_first_box_is_the_answer(completion: str, count: int, index: int | None) -> None:
    assert choice_index(completion, count) == index


@pytest.mark.parametrize(
    ("completion", "reasoning"),
    [
        ("It is high.\n\\boxed{B} and more", "It is high."),
        ("\\boxed{ B }", ""),
        ("no box \n", "no box"),
        ("\\boxed{7} then \\boxed{A}", "\\boxed{7} then"),
        ("", ""),
    ],
)
def test_the_reasoning_ends_before_the_first_box(completion: str, reasoning: str) -> None:
    assert before_box(completion) == reasoning


def test_an_answer_ends_where_the_models_positions_do(policy: Policy, questions: pl.DataFrame) -> None:
    """A limit of more tokens than the model has changes nothing before its end; positions are not run over."""
    some = questions.head(3)
    prompts = [policy.prompt_text(s, p) for s, p in some.select("system", "prompt").iter_rows()]
    longest = max(len(ids) for ids in policy.encode(prompts))
    config = policy.model.config
    before = config.max_position_embeddings
    cue = len(policy.encode([policy.answer_cue])[0])
    config.max_position_embeddings = longest + cue + 2
    try:
        cut = answer(policy, some, Evaluation(max_completion_tokens=8192))
    finally:
        config.max_position_embeddings = before
    assert_frame_equal(cut, answer(policy, some, Evaluation(max_completion_tokens=2)))
