from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from common.questions.codebook import Codebook, fit_codebook
from common.questions.codebook_file import check_codebook, differences, from_toml, read_codebook, to_toml
from common.registry.config import Feature
from common.registry.registry import Registry
from common.study import Questions


@pytest.fixture(scope="module")
def codebook(clinic: Registry) -> Codebook:
    return fit_codebook(clinic.frame, clinic.features, Questions(), seed=1)


def test_it_comes_back_as_it_was_written(codebook: Codebook, tmp_path: Path) -> None:
    place = tmp_path / "codebook.toml"
    place.write_text(to_toml(codebook), encoding="utf-8")
    assert read_codebook(place) == codebook
    assert codebook.hash in place.read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"Female"', '"Women"', "changed since it was written"),
        ("version = 1", "version = 2", "version is 2"),
        ("kind = ", "sort = ", "no whole codebook"),
        ("[[columns]]", "[columns", "not valid TOML"),
    ],
)
def test_a_file_that_was_changed_is_refused(codebook: Codebook, old: str, new: str, said: str) -> None:
    text = to_toml(codebook)
    assert old in text
    with pytest.raises(UserError, match=said):
        from_toml(text.replace(old, new, 1), "book.toml")


def test_a_codebook_must_hold_what_the_site_asks(codebook: Codebook, clinic: Registry) -> None:
    check_codebook(codebook, clinic.features, Questions(), "book")
    other = (*clinic.features, Feature(column="weight", name="Weight", section="Vitals", kind="number"))
    with pytest.raises(UserError, match="1 features of this site are not in it, the first is 'weight'"):
        check_codebook(codebook, other, Questions(), "book")
    with pytest.raises(UserError, match=r"over 0\.5 nats, the study says 0\.3"):
        check_codebook(codebook, clinic.features, Questions(mi_threshold=0.3), "book")


def test_a_codebook_of_the_papers_construction_is_refused(clinic: Registry) -> None:
    paper = fit_codebook(clinic.frame[:200], clinic.features[:3], Questions(fidelity="paper"), seed=1)
    with pytest.raises(UserError, match="paper's construction"):
        check_codebook(paper, clinic.features[:3], Questions(), "book")


def test_differences_name_column_and_field(codebook: Codebook) -> None:
    assert differences(codebook, codebook) == []
    columns = dict(codebook.columns)
    columns["sex"] = replace(columns["sex"], values=("Male", "Female", "Unknown"))
    del columns["death"]
    other = Codebook(columns, {}, codebook.mi_threshold)
    assert differences(codebook, other) == [
        "sex: values: ['Male', 'Female'] against ['Male', 'Female', 'Unknown']",
        "death: in the first alone",
        "lactate: leaves out twin: the first alone",
        "pressure: leaves out shock: the first alone",
        "shock: leaves out pressure: the first alone",
        "twin: leaves out lactate: the first alone",
    ]
