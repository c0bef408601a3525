import hashlib
import os
import subprocess
import sys
from collections.abc import Callable

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.questions.building import SCHEMA, askable, build_questions, lookup_questions
from common.questions.codebook import Codebook, fit_codebook
from common.questions.rendering import MASK, label
from common.registry.registry import Registry
from common.study import Questions

SPEC = Questions()


def fit(registry: Registry, spec: Questions = SPEC) -> Codebook:
    return fit_codebook(registry.frame, registry.features, spec, 1)


def everything(registry: Registry, codebook: Codebook, seed: int = 1, per_patient: int | None = None) -> pl.DataFrame:
    return build_questions(registry, registry.frame["patient"], codebook, SPEC, seed, per_patient)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_registry_gives_well_formed_questions(
    data: st.DataObject, registries: Callable[[], st.SearchStrategy[Registry]]
) -> None:
    registry = data.draw(registries())
    # Half the patients are the training side, so the rest may hold values that the codebook never saw.
    codebook = fit_codebook(registry.frame[::2], registry.features, SPEC, 1)
    questions = everything(registry, codebook)
    assert questions.schema == SCHEMA
    asked = askable(registry.features, codebook, SPEC)
    assert questions.height == sum(registry.frame[f.column].is_not_null().sum() for f in asked)
    assert questions["question_id"].is_unique().all()
    by_column = {f.column: f for f in registry.features}
    for q in questions.iter_rows(named=True):
        target, column = by_column[q["feature"]], codebook.columns[q["feature"]]
        record, _, asking = q["prompt"].partition("\n\nQuestion: ")
        labels = [line.partition(": ")[0] for line in record.split("\n") if not line.startswith("[")]
        hidden = codebook.excluded.get(q["feature"], ())
        row = registry.frame.filter(pl.col("patient") == q["patient"])
        expected = {
            label(f)
            for f in registry.features
            if row[f.column][0] is not None
            and f.column not in hidden
            and (f.known == "baseline" or target.known == "outcome" or f is target)
        }
        assert sorted(labels) == sorted(expected)
        assert f"{label(target)}: {MASK}" in record.split("\n") and record.count(MASK) == 1
        assert len(set(q["choices"])) == len(q["choices"]) == min(5, len(column.values)) >= 2
        assert asking.split("\n")[1:] == [f"{c}. {t}" for c, t in zip("ABCDE", q["choices"], strict=False)]
        truth = row[q["feature"]][0]
        answer = q["choices"][q["answer"]]
        assert (q["record"], q["reference"]) == (0, answer)
        if target.kind == "number":
            assert abs(float(answer) - truth) <= 0.5 * 10**-column.decimals * (1 + 1e-9)
            assert {len(c.partition(".")[2]) for c in q["choices"]} == {column.decimals}
        else:
            assert answer == truth


def test_masked_rows_differ_from_the_record_by_one_line(clinic: Registry) -> None:
    codebook = fit(clinic)
    questions = everything(clinic, codebook).filter(pl.col("feature") == "lactate")
    assert not questions["prompt"].str.contains("Lactate doubled").any()
    assert not questions["prompt"].str.contains("Death in hospital").any()
    deaths = everything(clinic, codebook).filter(pl.col("feature") == "death")
    assert deaths["prompt"].str.contains("Lactate doubled", literal=True).all()


def test_a_question_does_not_depend_on_the_other_patients(clinic: Registry) -> None:
    codebook = fit(clinic)
    all_of_them = everything(clinic, codebook, per_patient=3)
    some = clinic.frame["patient"].to_list()[5:90:7]
    alone = build_questions(clinic, reversed(some), codebook, SPEC, 1, 3)
    assert alone.equals(all_of_them.filter(pl.col("patient").is_in(some)))
    without = Registry(clinic.site, clinic.features, clinic.frame.filter(pl.col("patient").is_in(some)))
    assert build_questions(without, some, codebook, SPEC, 1, 3).equals(alone)


def test_training_draws_distinct_features_of_each_patient(clinic: Registry) -> None:
    codebook = fit(clinic)
    drawn = everything(clinic, codebook, per_patient=3)
    per_patient = drawn.group_by("patient").agg(pl.len(), pl.col("feature").n_unique().alias("distinct"))
    assert set(per_patient["len"]) == {3} == set(per_patient["distinct"])
    # Every feature gets its share: 9 are askable, lactate is missing in a tenth.
    shares = drawn["feature"].value_counts(normalize=True)["proportion"]
    assert shares.len() == 9 and shares.min() > 0.08 and shares.max() < 0.14
    whole = everything(clinic, codebook)
    assert set(drawn["question_id"]) <= set(whole["question_id"])
    assert everything(clinic, codebook, per_patient=100).equals(whole)


def test_the_seed_changes_draws_and_choices(clinic: Registry) -> None:
    codebook = fit(clinic)
    one, other = everything(clinic, codebook, 1, 3), everything(clinic, codebook, 2, 3)
    assert one.equals(everything(clinic, codebook, 1, 3))
    assert not one.select("patient", "feature").equals(other.select("patient", "feature"))


def test_only_the_kinds_in_the_study_are_asked(clinic: Registry) -> None:
    spec = Questions(ask=("category",))
    questions = build_questions(clinic, clinic.frame["patient"], fit(clinic, spec), spec, 1, None)
    # The coma scale is a number with 13 values: a category in effect.
    assert set(questions["feature"]) == {"sex", "source", "shock", "gcs", "death"}
    assert set(questions["kind"]) == {"category"}


def test_two_rows_of_a_patient_are_two_questions(clinic: Registry) -> None:
    twice = pl.concat([clinic.frame[:50], clinic.frame[50:100].with_columns(clinic.frame["patient"][:50])])
    questions = everything(Registry("twice", clinic.features, twice.sort("patient")), fit(clinic))
    pressure = questions.filter(pl.col("feature") == "pressure")
    assert pressure.height == 100 and pressure["question_id"].n_unique() == 100
    assert pressure["record"].to_list() == [0, 1] * 50
    assert questions["question_id"].is_unique().all()


def test_nothing_to_ask_is_an_empty_frame_of_the_same_shape(clinic: Registry) -> None:
    empty = build_questions(clinic, ["nobody"], fit(clinic), SPEC, 1, None)
    assert empty.is_empty() and empty.schema == SCHEMA


def test_position_and_rank_do_not_tell_the_answer(clinic: Registry) -> None:
    """Always answering the same letter, or the same rank among the numbers, is right one time in five."""
    questions = everything(clinic, fit(clinic)).filter(pl.col("feature").is_in(["pressure", "lactate", "twin"]))
    ranks = pl.col("choices").list.eval(pl.element().cast(pl.Float64).rank("ordinal")).list.get(pl.col("answer"))
    standard_error = (0.2 * 0.8 / questions.height) ** 0.5
    for guess in (pl.col("answer"), ranks.cast(pl.Int64)):
        shares = questions.select(guess.alias("guess").value_counts(normalize=True)).unnest("guess")["proportion"]
        assert shares.len() == 5
        assert (shares - 0.2).abs().max() < 4.5 * standard_error


PROGRAM = """
import sys
import polars as pl
from common.questions.building import build_questions, lookup_questions
from common.questions.codebook import fit_codebook
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions
frame = pl.read_parquet(sys.argv[1])
features = tuple(Feature.model_validate_json(line) for line in open(sys.argv[2], encoding="utf-8"))
registry, spec = Registry("clinic", features, frame), Questions()
codebook = fit_codebook(frame, features, spec, 1)
asked = build_questions(registry, frame["patient"], codebook, spec, 1, 2)
print(codebook.hash)
print(pl.concat([asked, lookup_questions(registry, codebook, spec, 1, 200)]).write_ndjson())
"""


def test_same_seed_same_bytes_in_another_process(clinic: Registry, tmp_path) -> None:
    clinic.frame.write_parquet(tmp_path / "frame.parquet")
    (tmp_path / "features").write_text("\n".join(f.model_dump_json() for f in clinic.features), encoding="utf-8")
    codebook = fit(clinic)
    asked = everything(clinic, codebook, per_patient=2)
    here = f"{codebook.hash}\n{pl.concat([asked, lookup_questions(clinic, codebook, SPEC, 1, 200)]).write_ndjson()}\n"
    there = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "frame.parquet"), str(tmp_path / "features")],
        env={**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "2", "POLARS_MAX_THREADS": "1"},
        check=True,
        capture_output=True,
    ).stdout
    assert hashlib.sha256(there).hexdigest() == hashlib.sha256(here.encode()).hexdigest()
