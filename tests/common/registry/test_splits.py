"""The split decides patient by patient; nothing else may move anybody."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

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
