from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.questions.building import SCHEMA, build_questions
from common.questions.codebook import fit_codebook
from common.questions.streaming import slices, write_questions
from common.registry.registry import Registry
from common.study import Questions

SPEC = Questions()


@pytest.fixture(scope="module")
def stays(clinic: Registry) -> Registry:
    """300 patients with one to three rows each."""
    frame = clinic.frame[:600].with_columns(clinic.frame["patient"][:300].sample(600, with_replacement=True, seed=3))
    return Registry("stays", clinic.features, frame.sort("patient", maintain_order=True))


@pytest.mark.parametrize("patients", [1, 7, 100, 10_000])
def test_slices_are_the_whole_registry_with_each_patient_in_one(stays: Registry, patients: int) -> None:
    parts = [part.frame for part in slices(stays, patients)]
    assert pl.concat(parts).equals(stays.frame)
    sizes = [part["patient"].n_unique() for part in parts]
    assert sum(sizes) == stays.frame["patient"].n_unique()
    assert set(sizes[:-1]) <= {patients} and 0 < sizes[-1] <= patients


@pytest.mark.parametrize("fidelity", ["strict", "paper"])
@pytest.mark.parametrize("per_patient", [None, 2])
def test_what_is_streamed_is_what_is_built_at_once(
    stays: Registry, tmp_path: Path, fidelity: str, per_patient: int | None
) -> None:
    spec = Questions(fidelity=fidelity)
    codebook = fit_codebook(stays.frame[:200], stays.features, spec, 1)
    patients = stays.frame["patient"].unique(maintain_order=True).to_list()[::2]
    at_once = build_questions(stays, patients, codebook, spec, 1, per_patient)
    path = tmp_path / "questions.parquet"
    parts = (build_questions(part, patients, codebook, spec, 1, per_patient) for part in slices(stays, 40))
    assert write_questions(parts, path) == at_once.height > 0
    streamed = pl.read_parquet(path)
    assert streamed.schema == SCHEMA
    assert streamed.write_ndjson() == at_once.write_ndjson()
    assert pq.ParquetFile(path).num_row_groups > 1
    assert [file.name for file in tmp_path.iterdir()] == ["questions.parquet"]


def test_nothing_to_ask_is_an_empty_file_of_the_same_shape(tmp_path: Path) -> None:
    assert write_questions([], tmp_path / "none.parquet") == 0
    assert pl.read_parquet(tmp_path / "none.parquet").schema == SCHEMA


def test_a_folder_that_is_not_there_is_told_and_a_broken_build_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        write_questions([], tmp_path / "file" / "questions.parquet")

    def broken():
        yield SCHEMA.to_frame()
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        write_questions(broken(), tmp_path / "questions.parquet")
    assert not (tmp_path / "questions.parquet").exists()
