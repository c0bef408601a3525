"""What names suggest."""

import pytest

from common.registry.drafting import names


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("Weight (kg)", ("Weight", "kg")),
        ("Heart rate [1/min]", ("Heart rate", "1/min")),
        ("crea_mg_dl", ("Crea", "mg/dL")),
        ("Crea (mg/dl)", ("Crea", "mg/dl")),
        ("map.mmHg", ("Map", "mmHg")),
        ("age_years", ("Age", "years")),
        ("kg", ("Kg", "")),
        ("SOFA", ("SOFA", "")),
        ("PaO2/FiO2", ("PaO2/FiO2", "")),
        ("PaO2/FiO2 mmHg", ("PaO2/FiO2", "mmHg")),
        ("Kreatinin µmol/l", ("Kreatinin", "µmol/L")),
        ("Alter (Jahre)", ("Alter", "years")),
        ("(kg)", ("(kg)", "")),
    ],
)
def test_a_unit_is_taken_off_the_name(column: str, expected: tuple[str, str]) -> None:
    assert names.name_and_unit(column) == expected


@pytest.mark.parametrize(
    ("column", "word"),
    [
        ("ICUDeath", "death"),
        ("died_28d", "died"),
        ("status_90d", "90d"),
        ("FDEAD", "dead"),
        ("LOS", "los"),
        ("Sterbedatum", "sterbe"),
        ("Exitus", "exitus"),
        ("glucose", ""),
        ("lactate_day1", ""),
    ],
)
def test_outcomes_are_suspected(column: str, word: str) -> None:
    assert names.outcome_word(column) == word


def test_the_surest_patient_column_ranks_first() -> None:
    ranks = {column: names.patient_rank(column) for column in ("patient_id", "subject_id", "MRN", "id", "weight")}
    assert ranks["weight"] is None
    order = [rank for column, rank in ranks.items() if rank is not None and column != "weight"]
    assert order == sorted(order) and len(set(order)) == 4


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("stay_id", True),
        ("Patient", True),
        ("case no", True),
        ("Pat-Nr", True),
        ("Fallnummer", False),
        ("uuid", True),
        ("patient_age", False),
        ("diagnosis_code", False),
        ("number", False),
        ("", False),
    ],
)
def test_a_key_is_told_from_what_is_said_about_a_patient(column: str, key: bool) -> None:
    assert names.is_key(column) is key
    assert key or names.patient_rank(column) is None
