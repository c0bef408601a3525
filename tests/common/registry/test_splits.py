"""The split decides patient by patient; nothing else may move anybody."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import UserError
from common.registry.config import RegistryConfig
from common.registry.registry import concat_registries, load_registry
from common.registry.splits import split_patients

people = st.lists(st.text(min_size=1, max_size=8), max_size=40)
seeds = st.integers(min_value=0, max_value=2**31)
fractions = st.floats(min_value=0.01, max_value=0.99)


@given(people, seeds, fractions)
def test_every_patient_is_on_one_side(patients: list[str], seed: int, fraction: float) -> None:
    split = split_patients(patients, seed, fraction)
    assert sorted(split["train"] + split["test"]) == sorted(set(patients))
    assert not set(split["train"]) & set(split["test"])


@given(people, seeds, fractions, st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(patients: list[str], seed: int, fraction: float, random) -> None:
    shuffled = patients * 2
    random.shuffle(shuffled)
    assert split_patients(shuffled, seed, fraction) == split_patients(patients, seed, fraction)


@given(people, people, seeds, fractions)
def test_other_patients_do_not_matter(ours: list[str], others: list[str], seed: int, fraction: float) -> None:
    alone = split_patients(ours, seed, fraction)
    together = split_patients(ours + others, seed, fraction)
    for side in ("train", "test"):
        assert set(alone[side]) == set(together[side]) & set(ours)


@given(people, seeds, fractions, fractions)
def test_a_larger_test_share_only_adds_test_patients(patients: list[str], seed: int, a: float, b: float) -> None:
    less, more = sorted((a, b))
    assert set(split_patients(patients, seed, less)["test"]) <= set(split_patients(patients, seed, more)["test"])


def test_the_share_is_about_what_was_asked_and_seeds_differ() -> None:
    patients = [f"p{number}" for number in range(4000)]
    first, second = (split_patients(patients, seed, 0.2)["test"] for seed in (1, 2))
    # Four standard deviations of a binomial count.
    assert abs(len(first) - 800) < 4 * (4000 * 0.2 * 0.8) ** 0.5
    assert abs(len(set(first) & set(second)) - 160) < 4 * (4000 * 0.04 * 0.96) ** 0.5


def test_the_rule_is_the_documented_hash() -> None:
    """Resumed runs and other machines rely on this very rule."""
    patients = sorted(f"p{number}" for number in range(50))
    below = [p for p in patients if int(hashlib.sha256(f"1:{p}".encode()).hexdigest()[:12], 16) < 0.3 * 16**12]
    assert split_patients(patients, 1, 0.3)["test"] == below


def declared(folder: Path, text: str, **more: Any) -> RegistryConfig:
    (folder / "t.csv").write_text(text)
    features = [{"column": c, "name": c, "section": "S", "kind": "number"} for c in ("a", "b")]
    values = {"site": "here", "patient": "id", "one_row_per_patient": False, "features": features}
    split = {"column": "fold", "train": ["1", "2"], "test": ["3"]}
    return RegistryConfig.model_validate(
        {**values, "table": {"source": "csv", "path": str(folder / "t.csv")}, "split": split, **more}
    )


def test_a_registry_brings_its_own_split(tmp_path: Path) -> None:
    text = "id,a,b,fold\np1,1,2,1\np1,2,3,2\np2,3,4,3\np3,4,5,3\n"
    registry = load_registry(declared(tmp_path, text))
    assert registry.sides == {"p1": "train", "p2": "test", "p3": "test"}
    for seed in range(20):
        sides = split_patients(registry.frame["patient"], seed, 0.5, registry.sides)
        assert sides == {"train": ["p1"], "test": ["p2", "p3"]}
    assert "#split" not in registry.frame.columns
    renamed = registry.frame.with_columns(patient="x" + pl.col("patient"))
    other = replace(registry, site="there", frame=renamed, sides={})
    assert concat_registries([registry, other], "all").sides == registry.sides


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,a,b,fold\np1,1,2,1\np1,2,3,3\np2,3,4,3\n", "1 patients are in both train and test by the column 'fold'"),
        ("id,a,b,fold\np1,1,2,1\np2,2,3,Zaphod\np3,3,4,\n", "says neither train nor test in 2 of 3 rows"),
    ],
)
def test_a_patient_in_two_splits_or_in_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_registry(declared(tmp_path, text))
    assert "p1" not in str(caught.value) and "Zaphod" not in str(caught.value)


def test_a_split_that_excludes_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="means both train and test"):
        declared(tmp_path, "", split={"column": "fold", "train": ["1"], "test": ["1"]})
    with pytest.raises(ValidationError, match="declared as a feature"):
        declared(tmp_path, "", split={"column": "a", "train": ["1"], "test": ["2"]})
