"""Discrimination by hand, against scikit-learn, and under drawn patients."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from common.evaluation.outcomes import discrimination


def answered(truth: list[str], said: list[str | None], yes: list[float], patients: list[str] | None = None):
    """Choices in an order that changes from question to question; `yes` is the likelihood of yes."""
    rows = []
    for i, (right, told, p) in enumerate(zip(truth, said, yes, strict=True)):
        choices = ["yes", "no"] if i % 2 else ["no", "yes"]
        likelihoods = [p if c == "yes" else 1 - p for c in choices]
        boxed = None if told is None else choices.index(told)
        likely = int(np.argmax(likelihoods))
        who = patients[i] if patients else f"p{i}"
        rows.append(("north", who, f"q{i}", choices, right, boxed, likely, likelihoods))
    names = ["site", "patient", "question_id", "choices", "reference", "boxed", "likely", "likelihoods"]
    return pl.DataFrame(rows, schema=names, orient="row", schema_overrides={"boxed": pl.Int64})


def drawn(n: int, seed: int) -> tuple[list[str], list[str], list[float]]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.15
    score = np.clip(0.3 * truth + rng.normal(0.3, 0.2, n), 0, 1).round(1)
    return (
        ["yes" if x else "no" for x in truth],
        ["yes" if x > 0.5 else "no" for x in score],
        [float(x) for x in score],
    )


def test_by_hand() -> None:
    """One of two deaths and two of three others are told: balanced (1/2 + 2/3) / 2, F1 2 / (2 + 2)."""
    frame = answered(["yes", "yes", "no", "no", "no"], ["yes", "no", "yes", "no", "no"], [0.9, 0.2, 0.6, 0.2, 0.1])
    found = discrimination([frame], 100, 1)
    assert found.balanced_accuracy.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.f1.value == pytest.approx(0.5)
    # Six pairs: 0.9 above all three; 0.2 above 0.1 and level with 0.2.
    assert found.auroc.value == pytest.approx((3 + 1.5) / 6)
    assert (found.majority, found.n_questions, found.n_patients) == (0.6, 5, 5)


def test_as_scikit_learn_has_it() -> None:
    truth, said, score = drawn(800, 1)
    found = discrimination([answered(truth, said, score)], 200, 1)
    assert found.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(truth, said))
    assert found.f1.value == pytest.approx(f1_score(truth, said, pos_label="yes"))
    assert found.auroc.value == pytest.approx(roc_auc_score([t == "yes" for t in truth], score))
    for figure in (found.balanced_accuracy, found.f1, found.auroc):
        assert figure.low < figure.value < figure.high
    assert discrimination([answered(truth, said, score)], 200, 1) == found


def test_the_unit_is_the_patient() -> None:
    """Ten copies of every record are ten records of one patient: the same figures, the same intervals."""
    truth, said, score = drawn(200, 2)
    once = discrimination([answered(truth, said, score, [f"p{i}" for i in range(200)])], 200, 1)
    copies = [x for x in range(200) for _ in range(10)]
    many = answered(*([[part[i] for i in copies] for part in (truth, said, score)]), [f"p{i}" for i in copies])
    again = discrimination([many], 200, 1)
    assert again.auroc.value == pytest.approx(once.auroc.value)
    assert (again.f1.low, again.f1.high) == pytest.approx((once.f1.low, once.f1.high))


def test_always_the_majority_is_chance() -> None:
    truth, _, _ = drawn(300, 3)
    found = discrimination([answered(truth, ["no"] * 300, [0.15] * 300)], 100, 1)
    assert (found.balanced_accuracy.value, found.f1.value, found.auroc.value) == (0.5, 0.0, 0.5)
    assert found.majority == pytest.approx(np.mean([t == "no" for t in truth]))


def test_without_a_box_the_likeliest_letter_counts_and_without_likelihoods_there_is_no_auroc() -> None:
    truth, said, score = drawn(300, 4)
    score = [s + 0.01 * (s == 0.5) for s in score]  # a tie goes to the first letter
    silent = answered(truth, [None] * 300, score)
    told = ["yes" if s > 0.5 else "no" for s in score]
    assert discrimination([silent], 100, 1).f1.value == pytest.approx(f1_score(truth, told, pos_label="yes"))
    bare = silent.with_columns(likelihoods=pl.lit(None, dtype=pl.List(pl.Float64)))
    assert discrimination([bare], 100, 1).auroc is None


def test_one_end_for_all_has_no_figures_and_seeds_are_averaged() -> None:
    one = discrimination([answered(["no"] * 9, ["no"] * 9, [0.1] * 9)], 100, 1)
    assert (one.balanced_accuracy, one.f1, one.auroc, one.majority) == (None, None, None, 1.0)
    runs = [answered(*drawn(300, seed)) for seed in (5, 6)]
    apart = [discrimination([run], 100, 1) for run in runs]
    assert discrimination(runs, 100, 1).auroc.value == pytest.approx(np.mean([a.auroc.value for a in apart]))
