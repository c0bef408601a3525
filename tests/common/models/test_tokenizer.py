"""The built-in model's tokenizer: nothing is lost, and what a record repeats is short."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from common.models.tokenizer import END, PAD, SYSTEM, train_tokenizer
from common.questions.rendering import label
from common.registry.registry import Registry
from common.study import Study
from common.tasks.site_questions import site_questions


@pytest.fixture(scope="module")
def texts(public: Registry, builtin_study: Callable[..., Study]) -> list[str]:
    prompts = site_questions(public, builtin_study()).train["prompt"].head(400)
    return [f"{prompt}\nLikely: yes\n\\boxed{{{'ABCDE'[n % 5]}}}" for n, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, 2048)


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


@given(text=st.one_of(st.text(), st.text(alphabet="[]:\n .,-0123456789AE\\{}xedbo<|>é ")))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_texts_come_back(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    assert tokenizer.batch_decode(tokenizer(texts[:50], add_special_tokens=False)["input_ids"]) == texts[:50]


def test_what_a_record_repeats_is_one_token(
    tokenizer: PreTrainedTokenizerFast, public: Registry, texts: list[str]
) -> None:
    shown = [f for f in public.features if sum(f"\n{label(f)}: " in text for text in texts) > 50]
    assert len(shown) >= 10
    for feature in shown:
        line = f"\n{label(feature)}: "
        assert pieces(tokenizer, f"{line}A")[0] == line
    for section in {feature.section for feature in shown} - {shown[0].section}:
        assert pieces(tokenizer, f"\n[{section}]") == [f"\n[{section}]"]
    for letter in "ABCDE":
        assert pieces(tokenizer, f"\n{letter}. yes")[0] == f"\n{letter}. "
        assert pieces(tokenizer, f"\n\\boxed{{{letter}}}") == ["\n\\boxed{", letter, "}"]


def test_numbers_are_read_digit_by_digit(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, "\nAge (years): 120.5")[1:] == ["1", "2", "0", ".", "5"]
    assert pieces(tokenizer, "-3") == ["-", "3"]


def test_the_same_texts_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    assert train_tokenizer(texts, 2048).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert train_tokenizer(texts, 400).backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()


def test_the_vocabulary_is_bounded(texts: list[str]) -> None:
    assert len(train_tokenizer(texts, 300)) == 300


def test_special_tokens_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == (PAD, END, "left")
    ids = tokenizer(f"{SYSTEM}[Severity]{END}", add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids(SYSTEM) and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[Severity]"


def test_the_template_reads_the_system_turn_as_one_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        prompts = []
        for system in ("Answer with a letter.", "Something else, said at length."):
            turns = [{"role": "system", "content": system}, {"role": "user", "content": "[Severity]\nSOFA: 3"}]
            prompts.append(reader.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        assert prompts == [f"{SYSTEM}[Severity]\nSOFA: 3\n"] * 2
        assert reader(prompts[0], add_special_tokens=False)["input_ids"][0] == reader.convert_tokens_to_ids(SYSTEM)
