"""The reference's column statistics and whole questions."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.questions.building import SCHEMA, askable, build_counted, build_questions, lookup_questions
from common.questions.codebook import Codebook, Column, fit_codebook
from common.questions.paper_codebook import fit_recorded
from common.questions.printing import AS_RECORDED, print_recorded
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Evaluation, Questions, Rounds, Sites, Study
from common.tasks.site_questions import site_questions

PAPER = Questions(fidelity="paper")


def fit(values: list, kind: str = "category") -> Column:
    dtype = pl.Float64 if kind == "number" else pl.String
    feature = Feature(column="x", name="X", section="S", kind=kind)
    return fit_recorded(pl.Series("x", values, dtype=dtype), feature, 1)


@pytest.mark.parametrize(
    ("number", "text"), [(147.0, "147"), (7.3, "7.3"), (0.25, "0.25"), (-0.0, "0"), (-2.5, "-2.5"), (100.0, "100")]
)
def test_a_number_is_printed_as_recorded(number: float, text: str) -> None:
    assert pl.DataFrame({"x": [number]}).select(print_recorded(pl.col("x"))).item() == text


@pytest.mark.parametrize(("distinct", "kind", "ratio"), [(20, "category", 0.0), (21, "number", 1.0)])
def test_at_most_20_distinct_numbers_are_categories(distinct: int, kind: str, ratio: float) -> None:
    for column in (fit([float(i) for i in range(distinct)], "number"), fit([str(i) for i in range(distinct)])):
        assert (column.kind, column.float_ratio, column.maskable) == (kind, ratio, True)


def test_the_float_ratio_is_distinct_numbers_over_distinct_values() -> None:
    """30 distinct numbers and 2 distinct words, however often: 30 / 32 = 0.9375. Shares are of the numbers' rows:

    of 60 numbers 58 are not negative (0.9667) and 40 whole (0.6667).
    """
    numbers = [str(i) for i in range(20)] * 2 + [f"{i}.5" for i in range(9)] * 2 + ["-0.5"] * 2
    column = fit(numbers + ["none"] * 50 + ["<1"] * 3)
    assert (column.kind, column.float_ratio) == ("number", 0.9375)
    assert column.share_nonnegative == pytest.approx(58 / 60, abs=1e-8)
    assert column.share_whole == pytest.approx(40 / 60, abs=1e-8)
    assert dict(zip(column.values, column.counts, strict=True))["none"] == 50 and len(column.values) == 32


@pytest.mark.parametrize(("distinct", "asked"), [(1, False), (2, True), (20, True), (21, False)])
def test_over_20_distinct_texts_are_free_text(distinct: int, asked: bool) -> None:
    assert fit([f"v{i % distinct}" for i in range(100)]).maskable is asked


def test_every_distinct_number_is_kept() -> None:
    assert len(fit([i / 7 for i in range(900)], "number").values) == 900


def test_the_mixture_is_fitted_to_raw_numbers() -> None:
    """Three groups 1000 sds apart: means and sds come back in the column's own unit, weights are 0.5, 0.3, 0.2."""
    rng = np.random.default_rng(3)
    groups = [(0.5, 1e4, 1.0), (0.3, 2e4, 2.0), (0.2, 3e4, 5.0)]
    values = np.concatenate([rng.normal(m, s, int(w * 1000)) for w, m, s in groups])
    for found, (weight, mean, sd) in zip(fit(values.tolist(), "number").mixture, groups, strict=True):
        assert found.weight == pytest.approx(weight, abs=1e-6)
        assert found.mean == pytest.approx(mean, abs=1) and found.sd == pytest.approx(sd, rel=0.15)


def small(clinic: Registry, rows: int = 300) -> Registry:
    return Registry(clinic.site, clinic.features, clinic.frame[:rows])


@pytest.fixture(scope="module")
def ward(clinic: Registry) -> Registry:
    return small(clinic)


@pytest.fixture(scope="module")
def codebook(ward: Registry) -> Codebook:
    return fit_codebook(ward.frame, ward.features, PAPER, 1)


def test_shortcuts_are_left_out_by_nearest_neighbours(codebook: Codebook, ward: Registry) -> None:
    assert codebook.excluded["lactate"] == ("twin",) and "lactate" in codebook.excluded["twin"]
    assert codebook.excluded["shock"] == ("pressure",)
    asked = build_questions(ward, ward.frame["patient"], codebook, PAPER, 1, None)
    assert not asked.filter(pl.col("feature") == "lactate")["prompt"].str.contains("Lactate doubled").any()


@pytest.mark.parametrize(("yes", "left_out"), [(200, True), (190, False)])
def test_more_than_half_a_nat_is_left_out(yes: int, left_out: bool) -> None:
    """A copy holds the entropy of its column. 200 of 1,000: 0.2 ln 5 + 0.8 ln 1.25 = 0.3219 + 0.1785 = 0.5004 nats;

    190 of 1,000: 0.19 ln (1 / 0.19) + 0.81 ln (1 / 0.81) = 0.3155 + 0.1707 = 0.4862 nats, which stays in the prompt.
    """
    column = ["yes"] * yes + ["no"] * (1000 - yes)
    features = tuple(Feature(column=c, name=c, section="S", kind="category") for c in ("x", "copy"))
    codebook = fit_codebook(pl.DataFrame({"x": column, "copy": column}), features, PAPER, 1)
    assert codebook.excluded == ({"x": ("copy",), "copy": ("x",)} if left_out else {})


def test_the_record_and_the_truth_have_the_digits_that_were_recorded(codebook: Codebook, ward: Registry) -> None:
    asked = build_questions(ward, ward.frame["patient"], codebook, PAPER, 1, None)
    recorded = dict(ward.frame.select("patient", "ph").iter_rows())
    for q in asked.filter(pl.col("feature") == "ph").iter_rows(named=True):
        assert q["choices"][q["answer"]] == f"{recorded[q['patient']]:.2f}".rstrip("0").rstrip(".")
        assert all(len(c.partition(".")[2]) == 1 for i, c in enumerate(q["choices"]) if i != q["answer"])
    shown = asked.filter(pl.col("feature") == "sex").row(0, named=True)
    assert f"pH: {recorded[shown['patient']]:.2f}".rstrip("0") in shown["prompt"]


def test_questions_without_distractors_are_dropped_and_counted() -> None:
    """400 rows: 380 times 10 and once each 10.01 to 10.20. 380 / 400 = 95 % are whole, so distractors are whole
    numbers, and whatever is drawn becomes 10. A truth of 10 is left alone (380 dropped), a truth of 10.01 has the 10.
    """
    values = [10.0] * 380 + [10 + i / 100 for i in range(1, 21)]
    frame = pl.DataFrame({"patient": [f"p{i:03d}" for i in range(400)], "x": values, "y": ["a", "b"] * 200})
    features = (
        Feature(column="x", name="X", section="S", kind="number"),
        Feature(column="y", name="Y", section="S", kind="category"),
    )
    registry = Registry("narrow", features, frame)
    codebook = fit_codebook(frame, features, PAPER, 1)
    built = build_counted(registry, frame["patient"], codebook, PAPER, 1, None)
    asked = built.questions.filter(pl.col("feature") == "x")
    assert (built.dropped, asked.height) == (380, 20)
    assert all(sorted(q)[0] == "10" and len(q) == 2 for q in asked["choices"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_registry_gives_well_formed_questions(
    data: st.DataObject, registries: Callable[[], st.SearchStrategy[Registry]]
) -> None:
    registry = data.draw(registries())
    codebook = fit_codebook(registry.frame, registry.features, PAPER, 1)
    built = build_counted(registry, registry.frame["patient"], codebook, PAPER, 1, None)
    asked = askable(registry.features, codebook, PAPER)
    assert built.questions.schema == SCHEMA
    assert built.questions.height + built.dropped == sum(registry.frame[f.column].is_not_null().sum() for f in asked)
    for q in built.questions.iter_rows(named=True):
        assert 2 <= len(set(q["choices"])) == len(q["choices"]) <= 5
        lines = q["prompt"].rpartition("\n\nQuestion: ")[2].split("\n")[1:]
        assert lines == [f"{letter}. {text}" for letter, text in zip("ABCDE", q["choices"], strict=False)]
        truth = registry.frame.filter(pl.col("patient") == q["patient"])[q["feature"]][0]
        answer = q["choices"][q["answer"]]
        assert float(answer) == truth if isinstance(truth, float) else answer == truth


def test_same_seed_same_questions_and_look_ups_work(codebook: Codebook, ward: Registry) -> None:
    assert fit_codebook(ward.frame, ward.features, PAPER, 1).hash == codebook.hash
    assert Codebook.from_dict(codebook.to_dict()) == codebook
    once, again = (build_questions(ward, ward.frame["patient"], codebook, PAPER, 1, 2) for _ in range(2))
    assert once.equals(again)
    for q in lookup_questions(ward, codebook, PAPER, 1, 50).iter_rows(named=True):
        assert f": {q['choices'][q['answer']]}\n" in q["prompt"]


def test_statistics_come_from_all_rows_under_paper_alone(ward: Registry) -> None:
    """Test patients included: their values change the codebook of `paper` and not that of `strict`."""
    values = {"name": "t", "sites": Sites(train=("clinic",), public=("public",))}
    short = {"rounds": Rounds(validation_patients=10), "evaluation": Evaluation(patients_per_site=10)}
    for fidelity in ("paper", "strict"):
        study = Study.model_validate({**values, **short, "questions": Questions(fidelity=fidelity)})
        before = site_questions(ward, study)
        trained = {*before.train["patient"], *before.validation["patient"]}
        tested = ~pl.col("patient").is_in(sorted(trained))
        frame = ward.frame.with_columns(pl.when(tested).then(pl.lit("Elsewhere")).otherwise("source").alias("source"))
        after = site_questions(Registry(ward.site, ward.features, frame), study)
        assert (after.codebook == before.codebook) is (fidelity == "strict")
        counted = sum(before.codebook.columns["source"].counts)
        assert (counted == ward.frame.height) is (fidelity == "paper")


def test_a_codebook_of_the_paper_does_not_serve_a_strict_study(codebook: Codebook, ward: Registry) -> None:
    assert codebook.columns["ph"].decimals == AS_RECORDED
    with pytest.raises(ValueError, match="cannot serve a strict study"):
        build_questions(ward, ward.frame["patient"], codebook, Questions(), 1, None)
