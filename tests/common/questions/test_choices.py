"""The choices alone must not tell the answer."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.questions.choices import NONNEGATIVE, Choices, build_choices
from common.questions.codebook import Column, Component
from common.questions.printing import print_units, to_units
from common.questions.randomness import hash_keys
from common.study import Questions

SPEC = Questions()


def column(
    kind: str = "number",
    decimals: int = 0,
    sds: Sequence[float] = (5.0, 5.0, 5.0),
    nonnegative: float = 1.0,
    values: Sequence[str] = tuple(str(i) for i in range(30)),
    counts: Sequence[int] | None = None,
    grain: int = 1,
) -> Column:
    mixture = tuple(Component(1 / 3, mean, sd) for mean, sd in zip((10.0, 20.0, 30.0), sds, strict=True))
    number = kind == "number"
    return Column(
        column="x",
        kind="number" if number else "category",
        maskable=True,
        values=tuple(values),
        counts=tuple(counts or [1] * len(values)),
        decimals=decimals,
        grain=grain,
        mixture=mixture if number else (),
        float_ratio=float(number),
        share_nonnegative=nonnegative,
        share_whole=1.0,
    )


def numbers(col: Column, truth: Sequence[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, Choices]:
    """Choices as units, answers, and the choices themselves."""
    raw = pl.Series(truth, dtype=pl.Float64)
    printed = raw.to_frame("x").select(print_units(to_units(pl.col("x"), col.decimals), col.decimals)).to_series()
    choices = build_choices(col, raw, printed, SPEC, hash_keys(seed, "q", map(str, range(len(raw)))))
    answers = choices.answer.to_numpy()
    texts = choices.texts.to_list()
    assert [row[a] for row, a in zip(texts, answers, strict=True)] == printed.to_list()
    return np.array([[round(float(t) * 10**col.decimals) for t in row] for row in texts]), answers, choices


def uniform_within(counts: np.ndarray) -> bool:
    """Every share within 4.5 standard errors of equal shares."""
    n, k = counts.sum(), len(counts)
    return bool((abs(counts - n / k) < 4.5 * np.sqrt(n / k * (1 - 1 / k))).all())


@given(
    st.lists(st.floats(-50, 1000), min_size=1, max_size=30),
    st.integers(0, 3),
    st.floats(0.001, 200),
    st.sampled_from([0.5, 1.0]),
    st.integers(0, 1000),
)
def test_every_numeric_question_looks_the_same(
    truth: list[float], decimals: int, sd: float, nonnegative: float, seed: int
) -> None:
    values = [f"{i / 10**decimals:.{decimals}f}" for i in range(30)]
    col = column(decimals=decimals, sds=(sd, sd * 2, sd / 2), nonnegative=nonnegative, values=values)
    units, _, choices = numbers(col, truth, seed)
    assert units.shape[1] == 5
    assert all(len(set(row)) == 5 for row in units)
    for text in choices.texts.explode():
        assert len(text.partition(".")[2]) == decimals and text != "-0"
    if nonnegative > NONNEGATIVE:
        kept = [round(t * 10**decimals) >= 0 for t in truth]
        assert (units[kept] >= 0).all()


def test_ladders_are_arithmetic_with_the_components_step() -> None:
    units, _, _ = numbers(column(sds=(5.0, 5.0, 5.0), nonnegative=0.5), [20.0] * 200)
    assert (np.diff(np.sort(units, axis=1)) == 10).all()


@pytest.mark.parametrize(("sd", "grain"), [(3.7, 5), (3.7, 10), (16.3, 1), (16.3, 10), (800.0, 2)])
def test_choices_end_in_the_same_digits(sd: float, grain: int) -> None:
    """Most truths are round numbers, so a distractor with other last digits would give itself away."""
    modulus = max(grain, 10 ** int(np.log10(2 * sd)))
    units, _, _ = numbers(column(sds=(sd, sd, sd), nonnegative=0.5, grain=grain), [20.0, 23.0, 25.0, 30.0] * 50)
    assert (units % modulus == units[:, :1] % modulus).all()
    step = np.diff(np.sort(units, axis=1))
    assert (step >= grain).all() and (0.6 * 2 * sd <= step).all() and (step <= max(grain, 1.5 * 2 * sd)).all()


def test_the_rank_of_the_truth_is_uniform_and_independent_of_it() -> None:
    rng = np.random.default_rng(1)
    truth = rng.lognormal(2.0, 0.7, 20_000).round() + 4
    units, answers, _ = numbers(column(), truth.tolist())
    rank = (units < units[np.arange(len(units)), answers][:, None]).sum(axis=1)
    for part in (truth < np.median(truth), truth >= np.median(truth)):
        assert uniform_within(np.bincount(rank[part], minlength=5))


def test_a_truth_without_room_below_still_has_every_choice() -> None:
    units, answers, _ = numbers(column(), [0.0, 1.0, 2.0, 3.0] * 50)
    assert (units >= 0).all()
    rank = (units < units[np.arange(200), answers][:, None]).sum(axis=1)
    assert (rank <= np.tile([0, 1, 2, 3], 50)).all() and rank.max() == 3


def test_the_letter_of_the_truth_is_uniform() -> None:
    _, answers, _ = numbers(column(), [20.0] * 20_000)
    assert uniform_within(np.bincount(answers, minlength=5))


@pytest.mark.parametrize(
    ("sds", "truth"), [((0.05, 0.05, 0.05), 20.0), ((5.0, 5.0, 5.0), 1e5)], ids=["narrow", "no density"]
)
def test_without_a_usable_component_other_observed_values_are_drawn(sds: tuple, truth: float) -> None:
    col = column(sds=sds, counts=[100 if i < 10 else 1 for i in range(30)])
    units, answers, _ = numbers(col, [truth] * 500)
    others = units[np.arange(5) != answers[:, None]]
    assert set(others) <= set(range(30)) - {int(truth)}
    assert (others < 10).mean() > 0.9


def words(values: Sequence[str], counts: Sequence[int], truth: Sequence[str], seed: int = 0) -> Choices:
    col = column("category", values=values, counts=counts)
    printed = pl.Series(truth)
    return build_choices(col, printed, printed, SPEC, hash_keys(seed, "q", map(str, range(len(truth)))))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_up_to_five_categories_are_all_choices(size: int) -> None:
    values = [f"v{i}" for i in range(size)]
    choices = words(values, [10] * size, values * 20)
    assert all(sorted(row) == values for row in choices.texts.to_list())
    assert [row[a] for row, a in zip(choices.texts, choices.answer, strict=True)] == values * 20


def test_more_categories_are_drawn_by_frequency_without_the_truth() -> None:
    values, counts = [f"v{i}" for i in range(8)], [800, 400, 200, 100, 50, 20, 10, 5]
    choices = words(values, counts, ["v3"] * 5000)
    rows = choices.texts.to_list()
    assert all(len(set(row)) == 5 and row.count("v3") == 1 for row in rows)
    seen = {v: sum(v in row for row in rows) for v in values}
    ranked = [seen[v] for v in values if v != "v3"]
    assert ranked == sorted(ranked, reverse=True) and ranked[0] > 4900 and ranked[-1] > 0


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_value_unknown_in_training_has_as_many_choices_as_any(size: int) -> None:
    values = [f"v{i}" for i in range(size)]
    choices = words(values, [3] * size, ["new", "v0"] * 50)
    assert set(choices.texts.list.len()) == {min(5, size)}
    assert all(row.count("new") == 1 for row in choices.texts.to_list()[::2])


def test_fewer_choices_where_the_study_says_so() -> None:
    col = column()
    truth = pl.Series([20.0] * 10)
    keys = hash_keys(0, "q", map(str, range(10)))
    choices = build_choices(col, truth, truth.cast(pl.Int64).cast(pl.String), Questions(max_choices=3), keys)
    assert set(choices.texts.list.len()) == {3}
