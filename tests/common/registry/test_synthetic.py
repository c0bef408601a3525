"""The generator must show the relations its table declares, shift between sites, and repeat itself."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from common.registry import relations
from common.registry.config import Synthetic
from common.registry.synthetic import covered, generate


def hospital(site: str = "here", **changes: Any) -> pl.DataFrame:
    return generate(Synthetic(**{"patients": 4000, "missing": 0.0, **changes}), site)


@pytest.fixture(scope="module")
def plain() -> pl.DataFrame:
    return hospital()


def share(frame: pl.DataFrame, column: str, value: str) -> float:
    return frame.filter(pl.col(column) == value).height / frame.height


def test_the_same_seed_gives_the_same_hospital_and_another_does_not(plain: pl.DataFrame) -> None:
    assert_frame_equal(plain, hospital())
    assert not plain["age"].equals(hospital(seed=2)["age"])
    assert not plain["age"].equals(hospital(site="there")["age"])


def test_no_two_hospitals_share_a_patient(plain: pl.DataFrame) -> None:
    assert plain["patient"].n_unique() == plain.height
    assert not set(plain["patient"]) & set(hospital(site="there")["patient"])


def test_every_state_is_reflected_in_order_by_its_grades_and_numbers(plain: pl.DataFrame) -> None:
    """A number that a state moves rises (or falls) over the levels that the state's grades chart."""
    checked = 0
    for grade in relations.GRADES:
        if len(set(grade.values)) < 3:
            continue
        for measure in relations.MEASURES:
            weight = measure.causes.get(grade.state, 0.0)
            if abs(weight) < measure.spread / 2:
                continue
            low, middle, high = (
                plain.filter(pl.col(grade.column) == value)[measure.column].mean() for value in grade.values
            )
            assert np.sign(middle - low) == np.sign(high - middle) == np.sign(weight), (grade, measure)
            checked += 1
    assert checked > 20


def test_organisms_follow_the_table(plain: pl.DataFrame) -> None:
    for focus in ("lung", "urine", "abdomen", "skin"):
        cells = [
            weights
            for choice in relations.CHOICES
            if choice.column == "organism"
            for given, weights in choice.weights.items()
            if given[0] == focus
        ]
        allowed = set().union(*cells)
        here = plain.filter(pl.col("focus") == focus)
        assert set(here["organism"]) <= allowed
        top = here["organism"].mode()[0]
        assert any(max(cell, key=lambda name: cell[name]) == top for cell in cells)


def test_every_choice_declares_probabilities_for_every_case() -> None:
    for choice in relations.CHOICES:
        for weights in choice.weights.values():
            assert sum(weights.values()) == pytest.approx(1.0), choice.column
    for mix in relations.CASE_MIX.values():
        assert sum(mix.values()) == pytest.approx(1.0)


def test_appropriate_therapy_follows_the_rule_as_often_as_declared(plain: pl.DataFrame) -> None:
    works = covered(*(plain[column].to_numpy() for column in ("drug_class", "organism", "resistance")))
    agrees = float(((plain["appropriate"] == "yes").to_numpy() == works).mean())
    error = (relations.APPROPRIATE_CHARTED * (1 - relations.APPROPRIATE_CHARTED) / plain.height) ** 0.5
    assert agrees == pytest.approx(relations.APPROPRIATE_CHARTED, abs=4 * error)


def test_resistance_is_overcome_only_by_classes_that_say_so() -> None:
    drug = np.array(["penicillin", "penicillin", "carbapenem", "glycopeptide"])
    organism = np.array(["E. coli", "E. coli", "E. coli", "E. coli"])
    resistance = np.array(["no", "yes", "yes", "no"])
    assert covered(drug, organism, resistance).tolist() == [True, False, True, False]


def test_death_comes_from_organ_failure_lactate_and_age(plain: pl.DataFrame) -> None:
    for cause in ("sofa", "lactate", "age"):
        middle = plain[cause].median()
        above, below = plain.filter(pl.col(cause) > middle), plain.filter(pl.col(cause) <= middle)
        assert share(above, "icu_death", "yes") > share(below, "icu_death", "yes") + 0.05, cause
    dead = plain.filter(pl.col("icu_death") == "yes")
    assert share(dead, "hospital_death", "yes") == 1.0
    assert share(plain, "hospital_death", "yes") > share(plain, "icu_death", "yes")


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("lactate", "lactate@3"),
        ("lactate@3", "lactate@7"),
        ("creatinine@3", "creatinine@7"),
        ("pf_ratio", "pf_ratio@2"),
    ],
)
def test_days_carry_over(plain: pl.DataFrame, early: str, late: str) -> None:
    ranks = plain.select(pl.corr(early, late, method="spearman")).item()
    assert 0.3 < ranks < 0.95


def test_sites_shift_as_declared(plain: pl.DataFrame) -> None:
    assert share(hospital(case_mix="surgical"), "focus", "abdomen") > share(plain, "focus", "abdomen") + 0.1
    assert hospital(severity=0.8)["sofa"].mean() > plain["sofa"].mean() + 1
    high = hospital(calibration=1.2)
    assert high["creatinine"].median() == pytest.approx(1.2 * plain["creatinine"].median(), rel=0.08)
    assert_frame_equal(high.select("map", "gcs", "age"), plain.select("map", "gcs", "age"))


def test_missing_values_are_as_many_as_declared_and_labs_have_more() -> None:
    frame = hospital(missing=0.1)
    assert frame["focus"].null_count() / frame.height == pytest.approx(0.1, abs=0.02)
    assert frame["lactate"].null_count() / frame.height == pytest.approx(0.2, abs=0.03)
    assert frame["lactate@7"].null_count() / frame.height == pytest.approx(0.3, abs=0.03)
    for column in ("patient", "age", "sex", "icu_death", "hospital_death"):
        assert frame[column].null_count() == 0
