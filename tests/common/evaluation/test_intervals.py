import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.evaluation.intervals import draw, interval, paired, patient_counts, tally

FEATURES = ["age", "lactate", "sex"]


def questions(rng: np.random.Generator, patients: int, per_patient: int, base: float = 0.5) -> pl.DataFrame:
    """`per_question`-shaped rows; each patient has a difficulty of its own, so that its questions agree."""
    skill = np.repeat(rng.beta(2 * base, 2 * (1 - base), patients), per_patient)
    who = np.repeat(np.arange(patients), per_patient)
    return pl.DataFrame(
        {
            "site": pl.Series([f"s{p % 3}" for p in who]),
            "patient": pl.Series([f"p{p}" for p in who]),
            "feature": rng.choice(FEATURES, len(who)),
            "credit": (rng.random(len(who)) < skill).astype(float),
        }
    )


def naive(runs: list[pl.DataFrame], weights: np.ndarray, patients: tuple) -> tuple[float, float]:
    """Micro and macro of one resample, by writing every drawn patient's rows out."""
    micro, macro = [], []
    for run in runs:
        by = dict(run.group_by("site", "patient"))
        rows = pl.concat([by[p] for p, n in zip(patients, weights, strict=True) for _ in range(int(n)) if p in by])
        micro.append(rows["credit"].mean())
        macro.append(rows.group_by("feature").agg(pl.col("credit").mean())["credit"].mean())
    return float(np.mean(micro)), float(np.mean(macro))


def test_agrees_with_a_naive_loop():
    rng = np.random.default_rng(5)
    runs = [questions(rng, 20, 4), questions(rng, 25, 3)]
    sums = tally(runs)
    got = draw(sums, resamples=7, seed=3)
    weights = np.concatenate(list(patient_counts(sums.n_patients, 7, 3)))
    want = [naive(runs, w, sums.patients) for w in weights]
    assert got.micro_draws == pytest.approx([m for m, _ in want], abs=1e-12)
    assert got.macro_draws == pytest.approx([m for _, m in want], abs=1e-12)
    assert (got.micro, got.macro) == pytest.approx(naive(runs, np.ones(sums.n_patients), sums.patients))


@given(n=st.integers(1, 60), resamples=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_resample_draws_as_many_patients_as_there_are(n: int, resamples: int, seed: int):
    weights = np.concatenate(list(patient_counts(n, resamples, seed)))
    assert weights.shape == (resamples, n)
    assert (weights.sum(axis=1) == n).all()
    again = np.concatenate(list(patient_counts(n, resamples, seed)))
    assert (weights == again).all()


def test_same_seed_same_interval_and_row_order_is_nothing():
    runs = [questions(np.random.default_rng(1), 80, 5)]
    shuffled = [runs[0].sample(fraction=1.0, shuffle=True, seed=9)]
    first, second = draw(tally(runs), 300, 4), draw(tally(shuffled), 300, 4)
    assert (first.micro_draws == second.micro_draws).all()
    assert (draw(tally(runs), 300, 5).micro_draws != first.micro_draws).any()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    hits = question_hits = 0
    trials = 300
    for trial in range(trials):
        frame = questions(rng, 80, 8, base=0.6)
        drawn = draw(tally([frame]), 200, trial)
        found = interval(drawn.micro, drawn.micro_draws)
        hits += found.low <= 0.6 <= found.high
        half = 1.96 * np.sqrt(0.24 / frame.height)
        question_hits += abs(drawn.micro - 0.6) <= half
    assert 0.90 <= hits / trials <= 0.985
    # The interval that takes questions as independent does not: this is why patients are resampled.
    assert question_hits / trials < 0.88


def test_paired_is_narrower_than_apart_and_finds_a_small_gain():
    rng = np.random.default_rng(2)
    worse = questions(rng, 300, 6)
    mended = rng.random(worse.height) < 0.06
    better = worse.with_columns(credit=pl.when(pl.Series(mended)).then(1.0).otherwise("credit"))
    a, b = draw(tally([better]), 500, 1), draw(tally([worse]), 500, 1)
    gain = paired(a, b)
    assert gain.estimate.value == pytest.approx(a.micro - b.micro)
    assert gain.estimate.low > 0
    assert gain.p == pytest.approx(1 / 501)
    apart = interval(a.micro, a.micro_draws)
    assert gain.estimate.high - gain.estimate.low < (apart.high - apart.low) / 2
    assert paired(b, a).p == 1.0
    assert paired(a, a).estimate == interval(0.0, np.zeros(3))
    assert paired(a, b, macro=True).estimate.value == pytest.approx(a.macro - b.macro)


def test_arms_on_other_patients_are_not_paired():
    rng = np.random.default_rng(2)
    a, b = draw(tally([questions(rng, 30, 2)]), 100, 1), draw(tally([questions(rng, 31, 2)]), 100, 1)
    with pytest.raises(ValueError, match="same patients"):
        paired(a, b)


def test_a_usual_evaluation_takes_seconds():
    frame = questions(np.random.default_rng(3), 2000, 10)
    start = time.process_time()
    draw(tally([frame]), 1000, 1)
    assert time.process_time() - start < 5
