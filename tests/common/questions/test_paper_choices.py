"""The reference's choices, rule by rule, against cases worked by hand."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.questions.codebook import Column, Component
from common.questions.paper_choices import paper_choices, print_distractors, rungs_around
from common.questions.printing import AS_RECORDED
from common.questions.randomness import hash_keys
from common.study import Questions

SPEC = Questions(fidelity="paper")
ONE_SD = (Component(1 / 3, 50.0, 5.0), Component(1 / 3, 50.0, 5.0), Component(1 / 3, 50.0, 5.0))


def column(
    values: Sequence[str] = tuple(str(i) for i in range(30)),
    counts: Sequence[int] | None = None,
    mixture: tuple[Component, ...] = ONE_SD,
    nonnegative: float = 0.5,
    whole: float = 1.0,
    float_ratio: float = 1.0,
) -> Column:
    return Column(
        column="x",
        kind="number" if mixture else "category",
        maskable=True,
        values=tuple(values),
        counts=tuple(counts or [1] * len(values)),
        decimals=AS_RECORDED,
        mixture=mixture,
        float_ratio=float_ratio,
        share_nonnegative=nonnegative,
        share_whole=whole,
    )


def ask(col: Column, truth: Sequence[str], seed: int = 0, spec: Questions = SPEC) -> tuple[list[list[str]], list[int]]:
    keys = hash_keys(seed, "q", map(str, range(len(truth))))
    choices = paper_choices(col, pl.Series(truth, dtype=pl.String), spec, keys)
    rows, answers = choices.texts.to_list(), choices.answer.to_list()
    assert [row[a] for row, a in zip(rows, answers, strict=True)] == list(truth)
    return rows, answers


def distractors(col: Column, rungs: np.ndarray, truth: float) -> list[str | None]:
    texts, there = print_distractors(col, rungs[None, :], np.array([truth]))
    return [text if stands else None for text, stands in zip(texts, there[0], strict=True)]


def uniform_within(counts: np.ndarray) -> bool:
    """Every share within 4.5 standard errors of equal shares."""
    n, k = counts.sum(), len(counts)
    return bool((abs(counts - n / k) < 4.5 * np.sqrt(n / k * (1 - 1 / k))).all())


def test_the_step_is_twice_the_components_sd_and_the_rank_is_uniform() -> None:
    """sd 5: step 2.0 x 5 = 10. Around 50 five rungs; rank 0 gives 50..90, rank 4 gives 10..50."""
    rows, _ = ask(column(), ["50"] * 5000)
    ladders = {tuple(sorted(int(c) for c in row)) for row in rows}
    assert ladders == {tuple(range(50 - 10 * r, 100 - 10 * r, 10)) for r in range(5)}
    assert uniform_within(np.bincount([sorted(map(int, row)).index(50) for row in rows]))


def test_difficulty_is_the_step_in_sds() -> None:
    """Difficulty 1: step 1 x 5 = 5."""
    rows, _ = ask(column(), ["50"] * 100, spec=Questions(fidelity="paper", difficulty=1.0))
    assert all((np.diff(sorted(map(int, row))) == 5).all() for row in rows)


def test_the_component_is_drawn_by_its_posterior_at_the_truth() -> None:
    """At 30, N(20, 10) of weight 0.8 and N(40, 20) of weight 0.2.

    Densities: 0.8/10 exp(-1/2 (10/10)^2) = 0.08 x 0.60653 = 0.048522, and 0.2/20 exp(-1/2 (10/20)^2) = 0.01 x 0.88250
    = 0.008825; the posterior of the second is 0.008825 / 0.057347 = 0.15389. Its step is 2 x 20 = 40, not 20.
    """
    wide = 0.008825 / (0.048522 + 0.008825)
    mixture = (Component(0.8, 20.0, 10.0), Component(0.2, 40.0, 20.0))
    rows, _ = ask(column(mixture=mixture), ["30"] * 20_000)
    steps = np.array([np.diff(sorted(map(int, row)))[0] for row in rows])
    assert set(steps) == {20, 40}
    assert abs((steps == 40).mean() - wide) < 4.5 * np.sqrt(wide * (1 - wide) / len(rows))


@pytest.mark.parametrize(
    ("mixture", "truth"),
    [
        # 0.099 < 0.1
        ((Component(1.0, 10.0, 0.099),), "10"),
        # z = (200 - 10) / 1 = 190, exp(-190^2 / 2) = exp(-18050) is 0 in float64, whose least is about exp(-745)
        ((Component(1.0, 10.0, 1.0),), "200"),
    ],
    ids=["narrow", "no density"],
)
def test_other_observed_values_take_the_ladders_place(mixture: tuple[Component, ...], truth: str) -> None:
    values = [str(v) for v in (*range(0, 290, 10), 7)]
    rows, _ = ask(column(values, mixture=mixture), [truth] * 400)
    others = {c for row in rows for c in row} - {truth}
    assert all(len(row) == 5 for row in rows)
    assert others == set(values) - {truth}


def test_an_sd_of_a_tenth_still_makes_a_ladder() -> None:
    """sd 0.1 is not under 0.1: step 0.2, and the rungs 9.8, 10.2, 10.4 were never observed."""
    rows, _ = ask(column(mixture=(Component(1.0, 10.0, 0.1),), whole=0.5), ["10"] * 50)
    assert all((np.round(np.diff(sorted(map(float, row))), 6) == 0.2).all() for row in rows)


def test_observed_values_are_drawn_by_frequency() -> None:
    """Weight 1000 against 28 others of weight 1: the first draw takes it with 1000 / 1028, the next ones the rest."""
    rows, _ = ask(column(counts=[1, 1000] + [1] * 28, mixture=(Component(1.0, 10.0, 0.01),)), ["0"] * 500)
    assert np.mean(["1" in row for row in rows]) > 0.99


def test_observed_values_are_rounded_too() -> None:
    """7.31 keeps its digits; 7.24 and 7.38 become 7.2 and 7.4; 7.33 becomes 7.3, which is not 7.31."""
    values = ["7.24", "7.31", "7.33", "7.38"]
    rows, _ = ask(column(values, mixture=(Component(1.0, 7.3, 0.05),), whole=0.0), ["7.31"] * 20)
    assert all(sorted(row) == ["7.2", "7.3", "7.31", "7.4"] for row in rows)


@pytest.mark.parametrize(("share", "dropped"), [(0.95, False), (0.951, True)])
def test_over_95_percent_not_negative_drops_negative_rungs_without_replacement(share: float, dropped: bool) -> None:
    """Around 4 with step 10, rank r has r rungs below, all negative: 5 - r choices are left."""
    rows, _ = ask(column(mixture=(Component(1.0, 4.0, 5.0),), nonnegative=share), ["4"] * 2000)
    negative = {int(c) for row in rows for c in row if int(c) < 0}
    assert negative == (set() if dropped else {-6, -16, -26, -36})
    assert {len(row) for row in rows} == ({1, 2, 3, 4, 5} if dropped else {5})
    if dropped:
        assert uniform_within(np.bincount([len(row) for row in rows])[1:])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.91, ["53", "56", "58", "61"]), (0.90, ["52.9", "55.6", "58.3", "61.0"])]
)
def test_over_90_percent_whole_rounds_distractors_but_never_the_truth(share: float, expected: list[str]) -> None:
    """sd 1.34: step 2.68. 50.25 + 2.68 k = 52.93, 55.61, 58.29, 60.97; the truth stays 50.25."""
    col = column(mixture=(Component(1.0, 50.0, 1.34),), whole=share)
    assert distractors(col, 50.25 + 2.68 * np.arange(1, 5), 50.25) == expected
    rows, _ = ask(col, ["50.25"] * 100)
    lowest_rank = ["50.25", *expected]
    assert lowest_rank in [sorted(row, key=float) for row in rows]


def test_duplicates_are_removed() -> None:
    """Around 10 with step 0.3, in whole numbers: 10.3 is 10, the truth; 10.6, 10.9 and 11.2 are all 11."""
    assert distractors(column(), np.array([10.3, 10.6, 10.9, 11.2]), 10.0) == [None, "11", None, None]


def test_a_duplicate_of_a_dropped_value_is_not_missed() -> None:
    """-0.3 is dropped as negative before it rounds to 0; 0.2 is the first 0 that stands, and 0.4 its duplicate."""
    assert distractors(column(nonnegative=1.0), np.array([-0.3, 0.2, 0.4, 3.0]), 9.0) == [None, "0", None, "3"]


def test_a_question_may_be_left_with_the_truth_alone() -> None:
    """Step 0.2 around 10 in whole numbers: 9.2 to 10.8 is 9, 10 or 11; ranks 1 and 2 reach 9.8..10.6 and 9.6..10.4.

    Rank 2: 9.6, 9.8, 10.2, 10.4 are all 10, as the truth is.
    """
    rows, _ = ask(column(mixture=(Component(1.0, 10.0, 0.1),)), ["10"] * 200)
    assert {tuple(sorted(row)) for row in rows} == {("10",), ("10", "11"), ("10", "9")}


def test_the_truth_has_a_uniform_random_letter() -> None:
    _, answers = ask(column(), ["50"] * 10_000)
    assert uniform_within(np.bincount(answers))
    rows, answers = ask(column(mixture=(Component(1.0, 4.0, 5.0),), nonnegative=1.0), ["4"] * 10_000)
    three = [a for row, a in zip(rows, answers, strict=True) if len(row) == 3]
    assert uniform_within(np.bincount(three))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_up_to_five_categories_are_all_choices(size: int) -> None:
    values = [f"v{i}" for i in range(size)]
    rows, _ = ask(column(values, mixture=(), float_ratio=0.0), values * 20)
    assert all(sorted(row) == values for row in rows)


def test_categories_are_drawn_without_replacement_by_frequency() -> None:
    """Truth d; weights a 6, b 3, c 1, e 1, f 1 and 4 of 5 drawn: the one left out is a with probability

    P(order ends in a): the least likely. P(f left out) is the largest share, equal for c, e and f.
    """
    values, counts = ["a", "b", "c", "d", "e", "f"], [6, 3, 1, 9, 1, 1]
    rows, _ = ask(column(values, counts, mixture=(), float_ratio=0.0), ["d"] * 6000)
    assert all(len(set(row)) == 5 and row.count("d") == 1 for row in rows)
    left_out = {v: np.mean([v not in row for row in rows]) for v in "abcef"}
    assert left_out["a"] < left_out["b"] < min(left_out[v] for v in "cef")
    assert max(abs(left_out["c"] - left_out[v]) for v in "ef") < 0.04


def mixed_column(ratio: float) -> Column:
    """Words `none`, `trace`, `lots`, `few`, `some` among 30 numbers; the ratio is the case's own."""
    values = ["none", "trace", "lots", "few", "some", *(str(v) for v in range(30))]
    return column(values, float_ratio=ratio)


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_words_among_numbers_are_binomial(ratio: float) -> None:
    """Words among the 4 distractors ~ Binomial(4, 1 - ratio): P(k) = C(4, k) (1 - ratio)^k ratio^(4 - k)."""
    n = 20_000
    rows, _ = ask(mixed_column(ratio), ["50"] * n)
    words = np.bincount([sum(c.isalpha() for c in row) for row in rows], minlength=5) / n
    q = 1 - ratio
    expected = np.array([ratio**4, 4 * q * ratio**3, 6 * q**2 * ratio**2, 4 * q**3 * ratio, q**4])
    assert (np.abs(words - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)).all()
    assert all(len(row) == 5 for row in rows)


def test_a_true_word_stands_among_words_and_observed_numbers() -> None:
    rows, _ = ask(mixed_column(0.5), ["trace"] * 300)
    words, numbers = {"none", "trace", "lots", "few", "some"}, {str(v) for v in range(30)}
    assert all(row.count("trace") == 1 and len(set(row)) == 5 and set(row) <= words | numbers for row in rows)


def test_where_words_run_out_numbers_take_their_place() -> None:
    """One word besides the truth and ratio 0: 4 words wanted, 1 there, so 3 numbers."""
    values = ["none", "trace", *(str(v) for v in range(30))]
    rows, _ = ask(column(values, float_ratio=0.0), ["trace"] * 50)
    assert {(sum(c.isalpha() for c in row), len(row)) for row in rows} == {(2, 5)}


@settings(deadline=None)
@given(
    st.lists(st.floats(-50, 1000), min_size=1, max_size=20),
    st.floats(0.001, 200),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.5, 1.0]),
    st.integers(2, 5),
    st.integers(0, 1000),
)
def test_any_numeric_question_is_well_formed(
    truth: list[float], sd: float, nonnegative: float, whole: float, most: int, seed: int
) -> None:
    mixture = (Component(0.5, 10.0, sd), Component(0.5, 300.0, 2 * sd))
    col = column(mixture=mixture, nonnegative=nonnegative, whole=whole)
    texts = [str(t) for t in truth]
    rows, answers = ask(col, texts, seed, Questions(fidelity="paper", max_choices=most))
    for row, answer, value in zip(rows, answers, truth, strict=True):
        assert 1 <= len(row) <= most
        assert len({float(c) for c in row}) == len(row)
        others = [c for i, c in enumerate(row) if i != answer]
        assert all(len(c.partition(".")[2]) == (0 if whole > 0.9 else 1) for c in others)
        assert nonnegative == 0.5 or all(float(c) >= 0 for c in others)
        assert float(row[answer]) == value


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 2**32))
def test_a_ladder_of_fewer_rungs_is_whole(wanted: int, seed: int) -> None:
    """The first `wanted` rungs with the truth are `wanted` + 1 neighbours a step apart."""
    keys = hash_keys(seed, "q", ["x"])
    rungs = rungs_around(np.array([100.0]), np.array([3.0]), np.array([wanted]), 4, keys)[0, :wanted]
    assert (np.diff(np.sort(np.append(rungs, 100.0))) == 3.0).all()
