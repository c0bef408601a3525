"""Can the answer be told without the record? A classifier sees how the choices look and nothing else."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from common.questions.building import build_questions
from common.questions.codebook import fit_codebook
from common.questions.leaks import LOOKS, UNSEEN, Leak, leak_table, looks, prior, round_questions, told_by_looks
from common.registry.config import read_registry_config
from common.registry.registry import Registry, load_registry
from common.study import Questions

ROOT = Path(__file__).parents[3]
SPEC = Questions(ask=("number",))


def assert_nothing_leaks(registry: Registry) -> None:
    rounds = [round_questions(registry, registry.frame["patient"].to_list(), SPEC, 1, number) for number in range(2)]
    leak = told_by_looks(rounds, "strict", "number", 1)
    assert leak.chance == pytest.approx(0.2)
    assert not leak.found, f"{leak.by_looks.accuracy:.3f} of {leak.questions} told by their looks"
    assert leak.by_prior.accuracy < 0.23, f"{leak.by_prior.accuracy:.3f} told by the column's values"


def ask(registry: Registry) -> pl.DataFrame:
    codebook = fit_codebook(registry.frame, registry.features, SPEC, 1)
    return build_questions(registry, registry.frame["patient"], codebook, SPEC, 1, None)


def test_looks_tell_nothing_in_round_numbers(clinic: Registry) -> None:
    fives = (pl.col("pressure") / 5).round() * 5
    kept = pl.int_range(pl.len()) % 4 == 0
    frame = clinic.frame.with_columns(pl.when(kept).then("pressure").otherwise(fives).alias("pressure"))
    assert_nothing_leaks(Registry("clinic", clinic.features, frame))


def test_looks_tell_nothing_in_real_hospitals() -> None:
    config = read_registry_config(ROOT / "site_configs" / "ist" / "ist-italy.toml")
    if not os.path.exists(config.table.path):
        pytest.skip(f"the IST table is not at {config.table.path}")
    assert_nothing_leaks(load_registry(config))


def test_the_classifier_finds_a_leak_where_there_is_one(clinic: Registry) -> None:
    """Distractors that are one off, as if digits had not been matched."""
    questions = ask(clinic).filter(pl.col("feature") == "pressure")
    fives = []
    for choices, answer in questions.select("choices", "answer").iter_rows():
        values = [str(round(int(c) / 10) * 10 + (0 if i == answer else 3)) for i, c in enumerate(choices)]
        fives.append(values)
    leaky = questions.with_columns(pl.Series("choices", fives))
    leak = told_by_looks([leaky], "strict", "number", 1)
    assert leak.found and leak.by_looks.accuracy > 0.9


def rows_of(choices: list[list[str]], answers: list[int], kind: str) -> pl.DataFrame:
    patients = [f"p{i:03d}" for i in range(len(choices))]
    return pl.DataFrame({"patient": patients, "feature": "x", "kind": kind, "choices": choices, "answer": answers})


def test_what_the_classifier_sees() -> None:
    """Of 7.31, 7.2 and 10: letters 0 to 2; ranks 2, 1, 3; 2, 1 and 0 decimals; 0, 0 and 1 closing zeros or fives.

    The range is 2.8; the gaps are 0.11 and 2.69, the mean 8.17.
    """
    seen = pl.DataFrame(looks(rows_of([["7.31", "7.2", "10"]], [0], "number")), schema=list(LOOKS))
    assert seen["letter"].to_list() == [0, 1, 2] and seen["rank"].to_list() == [2, 1, 3]
    assert seen["decimals"].to_list() == [2, 1, 0] and seen["zeros"].to_list() == [0, 0, 1]
    assert seen["length"].to_list() == [4, 3, 2] and seen["alike"].to_list() == [1, 1, 1]
    assert seen["digit"].to_list() == [1, 2, 0]
    assert seen["below"].to_list() == pytest.approx([0.11 / 2.8, UNSEEN, 2.69 / 2.8])
    assert seen["above"].to_list() == pytest.approx([2.69 / 2.8, 0.11 / 2.8, UNSEEN])
    assert seen["middle"].to_list() == pytest.approx([0.86 / 2.8, 0.97 / 2.8, 1.83 / 2.8])
    words = pl.DataFrame(looks(rows_of([["Yes", "No"], ["Lung", "Skin", "Urine"]], [0, 1], "category")), list(LOOKS))
    assert words["choices"].to_list() == [2, 2, 3, 3, 3] and words["letter"].to_list() == [0, 1, 0, 1, 2]
    assert all(set(words[look]) == {UNSEEN} for look in LOOKS if look not in ("letter", "choices", "number"))


def test_what_the_prior_knows() -> None:
    """Right answers of three counted patients: 5, 5 and 8. A 5 has 2 of 3 and nothing below; 7 none, 2 of 3 below."""
    asked = rows_of([["5", "7"], ["8", "5"], ["5", "8"], ["7", "9"]], [0, 1, 1, 0], "number")
    known = prior(asked, np.array([True, True, True, False]))
    assert known[:, 1].tolist() == pytest.approx([2 / 3, 0, 1 / 3, 2 / 3, 2 / 3, 1 / 3, 0, 0])
    assert known[:, 2].tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0, 0, 2 / 3, 2 / 3, 1])


def test_the_most_frequent_category_is_prior_and_no_leak() -> None:
    choices = [["Lung", "Skin"] if i % 2 else ["Skin", "Lung"] for i in range(600)]
    answers = [(i % 2 == 0) if i % 5 else (i % 2) for i in range(600)]
    leak = told_by_looks([rows_of(choices, [int(a) for a in answers], "category")], "strict", "category", 1)
    assert not leak.found and leak.by_prior.low > 0.7


@pytest.mark.parametrize("letter", [None, 1])
def test_a_letter_that_is_always_right_is_a_leak(letter: int | None) -> None:
    """Always B: accuracy 1. B, A, C in turn, which no look tells: no leak over chance, 1/3."""
    answers = [1 if letter else (1, 0, 2)[i % 3] for i in range(300)]
    leak = told_by_looks([rows_of([["Lung", "Skin", "Urine"]] * 300, answers, "category")], "strict", "category", 1)
    assert leak.chance == pytest.approx(1 / 3)
    assert (leak.found, leak.by_looks.accuracy == 1.0) == (bool(letter), bool(letter))


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UserError, match="Fewer than 50 patients have category questions"):
        told_by_looks([rows_of([["Lung", "Skin"]] * 49, [0] * 49, "category")], "strict", "category", 1)


def test_paper_leaks_and_strict_does_not() -> None:
    config = read_registry_config(ROOT / "site_configs" / "synthetic" / "synthetic-north.toml")
    table: dict[tuple[str, str], Leak] = {
        (leak.fidelity, leak.kind): leak for leak in leak_table(load_registry(config), Questions(), 1)
    }
    assert [key for key, leak in table.items() if leak.found] == [("paper", "number")]
    # The truth keeps its digits and the dropped rungs are not replaced: far over chance, not by a hair.
    assert table["paper", "number"].by_looks.accuracy > 2 * table["paper", "number"].chance
    assert table["strict", "number"].by_looks.low < 0.2 < table["strict", "number"].by_looks.high
    assert all(450 < leak.patients <= 500 for leak in table.values())
