from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from common.errors import UserError
from common.questions.codebook import fit_codebook
from common.questions.randomness import derive_seed, shuffle
from common.registry.registry import Registry, concat_registries
from common.registry.splits import split_patients
from common.registry.stored import StoredRegistry
from common.study import Evaluation, Questions, Rounds, Sites, Study
from common.tasks.site_questions import own_codebook, site_questions, write_site_questions


def study(**changes: object) -> Study:
    values = {
        "name": "test",
        "sites": Sites(train=("clinic",), public=("public",)),
        "rounds": Rounds(validation_patients=30),
        "evaluation": Evaluation(patients_per_site=50),
    }
    return Study.model_validate({**values, **changes})


def sides(registry: Registry, settings: Study) -> dict[str, list[str]]:
    seed = derive_seed(settings.seed, "split")
    return split_patients(registry.frame["patient"].to_list(), seed, settings.questions.test_fraction)


def test_no_patient_is_in_two_sets(clinic: Registry) -> None:
    settings = study()
    sets = site_questions(clinic, settings)
    train, validation, test = (set(f["patient"]) for f in (sets.train, sets.validation, sets.test))
    assert not train & validation and not train & test and not validation & test
    assert len(validation) == 30 and len(test) == 50
    split = sides(clinic, settings)
    assert test <= set(split["test"]) and train | validation == set(split["train"])


def test_train_has_its_number_per_patient_and_is_shuffled(clinic: Registry) -> None:
    sets = site_questions(clinic, study())
    assert set(sets.train.group_by("patient").len()["len"]) == {Questions().per_patient}
    assert not sets.train["patient"].is_sorted()
    assert sets.train.equals(site_questions(clinic, study()).train)
    assert not sets.train.equals(site_questions(clinic, study(seed=2)).train)


def test_written_sets_are_those_in_memory(clinic: Registry, tmp_path: Path) -> None:
    settings = study()
    counts = write_site_questions(clinic, settings, tmp_path / "new" / "folder")
    sets = site_questions(clinic, settings)
    written = {name: pl.read_parquet(tmp_path / "new" / "folder" / f"{name}.parquet") for name in counts}
    assert counts == {"train": sets.train.height, "validation": sets.validation.height, "test": sets.test.height}
    assert written["validation"].equals(sets.validation) and written["test"].equals(sets.test)
    assert written["train"]["patient"].is_sorted()
    assert shuffle(written["train"], derive_seed(settings.seed, "shuffle")).equals(sets.train)


def test_test_asks_for_every_value_unless_told(clinic: Registry) -> None:
    everything = site_questions(clinic, study()).test
    assert everything.group_by("patient").len()["len"].min() >= 8
    few = site_questions(clinic, study(evaluation=Evaluation(patients_per_site=50, questions_per_patient=2))).test
    assert set(few.group_by("patient").len()["len"]) == {2}


def test_no_test_patient_influences_the_codebook_or_the_training_questions(clinic: Registry) -> None:
    settings = study()
    tested = pl.col("patient").is_in(sides(clinic, settings)["test"])
    changed = clinic.frame.with_columns(
        pl.when(tested).then(pl.lit("Elsewhere")).otherwise("source").alias("source"),
        pl.when(tested).then(-1e6).otherwise("pressure").alias("pressure"),
        pl.when(tested).then(None).otherwise("lactate").alias("lactate"),
        pl.when(tested).then(pl.col("ph").shift(1)).otherwise("ph").alias("ph"),
    )
    before, after = (site_questions(Registry("clinic", clinic.features, f), settings) for f in (clinic.frame, changed))
    assert after.codebook.hash == before.codebook.hash
    assert after.train.equals(before.train) and after.validation.equals(before.validation)
    assert not after.test.equals(before.test)
    only = clinic.frame.filter(~tested)
    seed = derive_seed(settings.seed, "codebook")
    assert fit_codebook(only, clinic.features, settings.questions, seed) == before.codebook


def test_one_site_pooled_has_the_same_questions(clinic: Registry) -> None:
    one = site_questions(clinic, study())
    pooled = site_questions(concat_registries([clinic], "clinic"), study())
    assert pooled.codebook.hash == one.codebook.hash
    assert pooled.train.equals(one.train) and pooled.test.equals(one.test)


def test_more_patients_put_aside_than_there_are_is_refused(clinic: Registry) -> None:
    tiny = Registry("tiny", clinic.features, clinic.frame[:20])
    with pytest.raises(UserError, match="Site tiny: no training patient is left"):
        site_questions(tiny, study())


def stored_clinic(clinic: Registry, folder: Path) -> StoredRegistry:
    """The clinic as a stored registry of four parts."""
    everyone = clinic.patients
    size = -(-len(everyone) // 4)
    files = []
    for first in range(0, len(everyone), size):
        files.append(folder / f"{first}.parquet")
        clinic.of(everyone[first : first + size]).frame.write_parquet(files[-1])
    return StoredRegistry(replace(clinic, frame=clinic.frame.clear()), everyone, tuple(files))


def test_a_stored_registry_asks_as_the_one_in_memory(clinic: Registry, tmp_path: Path) -> None:
    settings = study(questions=Questions(codebook_patients=100))
    stored, ordered = stored_clinic(clinic, tmp_path), replace(clinic, frame=clinic.frame.sort("patient"))
    whole, divided = site_questions(ordered, settings), site_questions(stored, settings)
    assert divided.codebook == whole.codebook
    assert divided.train.equals(whole.train)
    assert divided.validation.equals(whole.validation) and divided.test.equals(whole.test)
    written = write_site_questions(stored, settings, tmp_path / "stored")
    assert written == write_site_questions(ordered, settings, tmp_path / "whole")
    for name in written:
        pieces = [pl.read_parquet(tmp_path / way / f"{name}.parquet") for way in ("stored", "whole")]
        assert pieces[0].equals(pieces[1])


def test_a_large_site_fits_its_codebook_to_a_sample_of_training_patients(clinic: Registry) -> None:
    """Counts in the codebook are of as many rows as declared, and one more patient displaces one at most."""
    few = study(questions=Questions(codebook_patients=100))
    fitted = own_codebook(clinic, few).columns["sex"]
    present = clinic.frame["sex"].count() / clinic.frame.height
    assert sum(fitted.counts) == pytest.approx(100 * present, abs=10)
    whole = own_codebook(clinic, study())
    assert own_codebook(clinic, study(questions=Questions(codebook_patients=10**6))) == whole
    assert sum(whole.columns["sex"].counts) > 3 * sum(fitted.counts)
