"""What must hold for any registry, in both constructions."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from common.questions.building import build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.questions.randomness import derive_seed
from common.registry.config import Feature
from common.registry.registry import Registry
from common.registry.splits import split_patients
from common.study import Questions, Study, parse_study
from common.tasks.site_questions import site_questions

Registries = Callable[[], st.SearchStrategy[Registry]]
FIDELITIES = {"strict": Questions(), "paper": Questions(fidelity="paper")}
both = pytest.mark.parametrize("spec", FIDELITIES.values(), ids=FIDELITIES)
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def built(registry: Registry, spec: Questions) -> tuple[Codebook, pl.DataFrame]:
    codebook = fit_codebook(registry.frame, registry.features, spec, 1)
    return codebook, build_questions(registry, registry.frame["patient"], codebook, spec, 1, None)


def records(questions: pl.DataFrame) -> dict[tuple[str, str], str]:
    """(patient, feature) -> the prompt before its question."""
    return {(p, f): text.rpartition("\n\nQuestion: ")[0] for p, f, text in
            questions.select("patient", "feature", "prompt").iter_rows()}  # fmt: skip


def moved(registry: Registry, column: str, rows: pl.Expr) -> Registry:
    """Each patient of `rows` has the column's value of another one, where there is one."""
    values = registry.frame[column].drop_nulls()
    if values.is_empty():
        return registry
    other = pl.Series(column, [values[(i + 1) % len(values)] for i in range(registry.frame.height)])
    present = pl.col(column).is_not_null() & rows
    changed = registry.frame.with_columns(pl.when(present).then(other).otherwise(column).alias(column))
    return Registry(registry.site, registry.features, changed)


def later(a: Feature, b: Feature) -> bool:
    return a.known == "outcome" and b.known == "baseline"


@both
@few
@given(data=st.data())
def test_no_record_depends_on_what_it_hides(data: st.DataObject, registries: Registries, spec: Questions) -> None:
    """Not on the masked value, nor on an excluded feature's, nor on one that becomes known later: in no formatting.

    Any of them is exchanged for another patient's, and the record stays the same text, byte for byte.
    """
    registry = data.draw(registries())
    codebook, questions = built(registry, spec)
    assume(questions.height > 0)
    before = records(questions)
    target = data.draw(st.sampled_from(sorted(set(questions["feature"]))))
    by_column = {f.column: f for f in registry.features}
    hidden = {target, *codebook.excluded.get(target, ())}
    hidden |= {c for c, f in by_column.items() if later(f, by_column[target])}
    for column in sorted(hidden):
        exchanged = moved(registry, column, pl.lit(True))
        after = build_questions(exchanged, exchanged.frame["patient"], codebook, spec, 1, None)
        asked = {key: text for key, text in records(after).items() if key[1] == target}
        assert asked and all(before.get(key, text) == text for key, text in asked.items())


@both
@few
@given(data=st.data())
def test_the_truth_stands_once_among_at_least_two_choices(
    data: st.DataObject, registries: Registries, spec: Questions
) -> None:
    registry = data.draw(registries())
    codebook, questions = built(registry, spec)
    for q in questions.iter_rows(named=True):
        choices, column = q["choices"], codebook.columns[q["feature"]]
        assert 2 <= len(choices) <= 5 and choices.count(choices[q["answer"]]) == 1
        assert len(set(choices)) == len(choices)
        if column.kind == "number":
            assert len({float(c) for c in choices}) == len(choices), "no two are one number written twice"
        if spec.fidelity == "strict" and registry.frame[q["feature"]].dtype == pl.Float64:
            assert {len(c.partition(".")[2]) for c in choices} == {column.decimals}
            assert all(f"{float(c):.{column.decimals}f}" == c for c in choices)


@few
@given(data=st.data())
def test_no_test_patient_influences_a_strict_codebook(data: st.DataObject, registries: Registries) -> None:
    registry = data.draw(registries())
    study = small_study()
    sides = split_patients(registry.frame["patient"].to_list(), derive_seed(study.seed, "split"), 0.2)
    assume(len(sides["train"]) > 1 and sides["test"])
    tested = pl.col("patient").is_in(sides["test"])
    _, asked = built(Registry(registry.site, registry.features, registry.frame.filter(~tested)), study.questions)
    # One of them is put aside, and a site with nothing to train on is refused.
    assume(asked["patient"].n_unique() > 1)
    before = site_questions(registry, study)
    column = data.draw(st.sampled_from([f.column for f in registry.features]))
    after = site_questions(moved(registry, column, tested), study)
    gone = site_questions(Registry(registry.site, registry.features, registry.frame.filter(~tested)), study)
    for other in (after, gone):
        assert other.codebook.hash == before.codebook.hash
        assert other.train.equals(before.train) and other.validation.equals(before.validation)


def small_study() -> Study:
    values = {"name": "t", "sites": {"train": ["random"], "public": ["public"]}, "rounds": {"validation_patients": 1}}
    return parse_study(values, "test")


@both
@few
@given(data=st.data())
def test_same_seed_same_bytes_in_any_order_of_rows(
    data: st.DataObject, registries: Registries, spec: Questions
) -> None:
    registry = data.draw(registries())
    codebook, questions = built(registry, spec)
    shuffled = registry.frame.sample(fraction=1.0, shuffle=True, seed=data.draw(st.integers(0, 99)))
    again = build_questions(
        Registry(registry.site, registry.features, shuffled), registry.frame["patient"], codebook, spec, 1, None
    )
    key = ["patient", "feature"]
    assert again.sort(key).write_ndjson() == questions.sort(key).write_ndjson()
    if spec.fidelity == "strict":
        assert fit_codebook(shuffled, registry.features, spec, 1).hash == codebook.hash
