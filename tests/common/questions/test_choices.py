"""The choices alone must not tell the answer."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.questions.choices import Choices, build_choices
from common.questions.codebook import Column, coarseness, support, unit_counts
from common.questions.printing import print_units, to_units
from common.questions.randomness import hash_keys
from common.study import Questions

SPEC = Questions()


def column(
    kind: str = "number",
    decimals: int = 0,
    values: Sequence[str] = tuple(str(i) for i in range(30)),
    counts: Sequence[int] | None = None,
    grain: int = 1,
) -> Column:
    return Column(
        column="x",
        kind="number" if kind == "number" else "category",
        maskable=True,
        values=tuple(values),
        counts=tuple(counts or [1] * len(values)),
        decimals=decimals,
        grain=grain,
    )


def numbers(
    col: Column, truth: Sequence[float], seed: int = 0, spec: Questions = SPEC
) -> tuple[np.ndarray, np.ndarray, Choices]:
    """Choices as units, answers, and the choices themselves."""
    raw = pl.Series(truth, dtype=pl.Float64)
    printed = raw.to_frame("x").select(print_units(to_units(pl.col("x"), col.decimals), col.decimals)).to_series()
    choices = build_choices(col, raw, printed, spec, hash_keys(seed, "q", map(str, range(len(raw)))))
    answers = choices.answer.to_numpy()
    texts = choices.texts.to_list()
    assert [row[a] for row, a in zip(texts, answers, strict=True)] == printed.to_list()
    return np.array([[round(float(t) * 10**col.decimals) for t in row] for row in texts]), answers, choices


def uniform_within(counts: np.ndarray) -> bool:
    """Every share within 4.5 standard errors of equal shares."""
    n, k = counts.sum(), len(counts)
    return bool((abs(counts - n / k) < 4.5 * np.sqrt(n / k * (1 - 1 / k))).all())


def fitted(noted: np.ndarray) -> Column:
    """A column of whole numbers as the codebook has it."""
    values, counts = support(unit_counts(pl.Series(noted, dtype=pl.Float64), 0), 0)
    return column(values=values, counts=counts, grain=coarseness(noted))


def ranks(units: np.ndarray, answers: np.ndarray) -> np.ndarray:
    return (units < units[np.arange(len(units)), answers][:, None]).sum(axis=1)


@given(
    st.lists(st.floats(-50, 1000), min_size=1, max_size=30),
    st.lists(st.integers(-40, 900), min_size=21, max_size=60, unique=True),
    st.integers(0, 3),
    st.integers(1, 500),
    st.floats(0.1, 2.0),
    st.integers(0, 1000),
)
def test_every_numeric_question_looks_the_same(
    truth: list[float], noted: list[int], decimals: int, most: int, difficulty: float, seed: int
) -> None:
    """Also where one value is that of nearly all patients, and for truths that nobody had in training."""
    values = pl.Series(noted).to_frame("x").select(print_units(pl.col("x"), decimals)).to_series().to_list()
    col = column(decimals=decimals, values=values, counts=[most, *[1 + i % 3 for i in range(len(noted) - 1)]])
    units, _, choices = numbers(col, truth, seed, Questions(difficulty=difficulty))
    assert units.shape[1] == 5
    assert all(len(set(row)) == 5 for row in units)
    for text in choices.texts.explode():
        assert len(text.partition(".")[2]) == decimals and text != "-0"
    others = [u for row, t in zip(units.tolist(), truth, strict=True) for u in row if u != round(t * 10**decimals)]
    assert all(min(noted) <= u <= max(noted) for u in others)


def test_choices_are_one_of_each_fifth_of_the_patients() -> None:
    """0 to 99, two patients each: a truth of 47 is at a share of 0.47 to 0.48, so others are at 7, 27, 67 and 87,
    or one on where a share ends between two values."""
    units, _, _ = numbers(column(values=[str(i) for i in range(100)], counts=[2] * 100), [47.0] * 200)
    assert {tuple(row) for row in np.sort(units, axis=1).tolist()} <= {(7, 27, 47, 67, 87)}


def test_half_the_difficulty_halves_the_distance() -> None:
    """Steps of a tenth: 10. Whole ladders and, at the ends, ladders that go on at the other end: 47, 57, 67, 77, 87."""
    col = column(values=[str(i) for i in range(100)], counts=[2] * 100)
    units, _, _ = numbers(col, [47.0] * 300, spec=Questions(difficulty=1.0))
    assert {tuple(row) for row in np.sort(units, axis=1).tolist()} == {
        tuple(sorted((47 + 10 * (k - rank)) % 100 for k in range(5))) for rank in range(5)
    }


def skewed(rng: np.random.Generator) -> np.ndarray:
    return rng.lognormal(3.0, 0.8, 20_000).round()


def heaped(rng: np.random.Generator) -> np.ndarray:
    """Pressures: three in four in tens, all others exact."""
    exact = rng.normal(140, 25, 20_000).round()
    return np.where(rng.random(20_000) < 0.75, (exact / 10).round() * 10, exact)


def two_groups(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(20_000) < 0.3, rng.normal(-80, 5, 20_000), rng.normal(200, 60, 20_000)).round()


def fine(rng: np.random.Generator) -> np.ndarray:
    """More values than the codebook keeps."""
    return rng.gamma(2.0, 5000.0, 20_000).round()


@pytest.mark.parametrize("difficulty", [2.0, 1.0])
@pytest.mark.parametrize("draw", [skewed, heaped, two_groups, fine])
def test_no_place_among_the_choices_is_the_truth_more_often(
    draw: Callable[[np.random.Generator], np.ndarray], difficulty: float
) -> None:
    """By rank; by rank within one length of the longest number; by the widest gap; by round tens; by the value itself.

    Every way of picking a choice by what the choices show must be right one time in five.
    """
    noted = draw(np.random.default_rng(1))
    truth = draw(np.random.default_rng(2))
    units, answers, _ = numbers(fitted(noted), truth.tolist(), spec=Questions(difficulty=difficulty))
    rank = ranks(units, answers)
    assert uniform_within(np.bincount(rank, minlength=5))
    ladder = np.sort(units, axis=1)
    gap = np.diff(ladder, axis=1).argmax(axis=1)
    high = ladder[:, -1] >= 10 ** (len(str(int(ladder.max()))) - 1)
    for part in (high, gap == 0, gap == 1, gap == 3, ladder[:, 0] < np.quantile(ladder[:, 0], 0.3)):
        assert part.sum() < 100 or uniform_within(np.bincount(rank[part], minlength=5))
    typical = np.abs(ladder - np.median(noted)).argmin(axis=1)
    commonest = np.array([(noted == u).sum() for u in range(int(noted.min()), int(noted.max()) + 1)])
    commonest = commonest[np.clip(ladder - int(noted.min()), 0, len(commonest) - 1)].argmax(axis=1)
    roundest = ((ladder % 10 == 0) * 2.0 + (ladder % 5 == 0) + 1e-3 * np.arange(5)[None, :]).argmax(axis=1)
    for guess in (typical, commonest, roundest):
        assert abs((guess == rank).mean() - 0.2) < 4.5 * np.sqrt(0.16 / len(rank))


def test_a_value_of_most_patients_is_still_asked_with_distinct_choices() -> None:
    """0 for 80 of 100 patients: of five equal steps four meet it, and others by frequency take their place."""
    col = column(values=[str(i) for i in range(21)], counts=[80, *[1] * 20])
    units, answers, _ = numbers(col, [0.0] * 400 + [7.0] * 100)
    assert all(len(set(row)) == 5 for row in units)
    assert (units == 0).any(axis=1).all(), "who has another value is asked beside the frequent one"
    others = units[:400][np.arange(5) != answers[:400, None]]
    assert set(others) == set(range(1, 21))


def test_a_value_of_one_patient_is_not_copied() -> None:
    """Between 40 and 60, two patients each, stands one patient's 50: it gives way to 46 ... 55 (grain 1)."""
    col = column(values=[*(str(20 * i) for i in range(30)), "50"], counts=[2] * 30 + [1])
    units, answers, _ = numbers(col, [20.0 * (i % 30) for i in range(6000)])
    near = {u for row in units.tolist() for u in row if 40 < u < 60}
    assert {46, 50, 54} <= near and min(near) == 46 and max(near) == 55
    coarse = column(values=col.values, counts=col.counts, grain=5)
    units, _, _ = numbers(coarse, [20.0 * (i % 30) for i in range(6000)])
    assert {u for row in units.tolist() for u in row if 40 < u < 60} == {50, 55}


def test_the_letter_of_the_truth_is_uniform() -> None:
    _, answers, _ = numbers(column(), [20.0] * 20_000)
    assert uniform_within(np.bincount(answers, minlength=5))


def test_a_difficulty_over_2_is_refused_in_strict_alone() -> None:
    with pytest.raises(ValidationError, match="wider than all patients"):
        Questions(difficulty=2.1)
    assert Questions(difficulty=3.0, fidelity="paper").difficulty == 3.0


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
