"""A stored registry is the one in memory, however it is divided."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.registry.config import Feature, RegistryConfig, Table, read_registry_config
from common.registry.registry import load_registry
from common.registry.splits import Split
from common.registry.stored import StoredRegistry, store, stored_registry

ROOT = Path(__file__).parents[3]
IST = ROOT.parent / "shared/data/ist"


def same(stored: StoredRegistry, config: RegistryConfig) -> None:
    whole = load_registry(config)
    assert pl.concat(part.frame for part in stored.parts()).equals(whole.frame)
    assert stored.about.frame.schema == whole.frame.schema and stored.about.frame.is_empty()
    found, expected = ((r.site, r.features, r.left_out, r.times, r.outcomes, r.sides) for r in (stored.about, whole))
    assert found == expected
    assert stored.patients == whole.patients
    some = whole.patients[::3]
    assert stored.of(some).frame.equals(whole.of(some).frame)


def ward(path: Path, patients: list[int], lab: list[str]) -> RegistryConfig:
    """A CSV with a row a number of `patients`, in that order, with dates, a category, a constant and a split."""
    lines = [
        f"p{patient},{value},{'MF'[patient % 2]},2024-01-{1 + patient % 28:02d},same,{'ab'[patient % 2]}"
        for patient, value in zip(patients, lab, strict=True)
    ]
    path.write_text("\n".join(["id,lab,sex,onset,constant,side", *lines]) + "\n")
    kinds = {"lab": "number", "sex": "category", "onset": "date", "constant": "category"}
    return RegistryConfig(
        site="ward",
        patient="id",
        one_row_per_patient=False,
        table=Table(source="csv", path=str(path)),
        split=Split(column="side", train=("a",), test=("b",)),
        features=tuple(Feature(column=c, name=c, section="Ward", kind=k) for c, k in kinds.items()),
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patients=st.lists(st.integers(1, 12), min_size=4, max_size=30).filter(lambda ids: len(set(ids)) > 3),
    rows=st.integers(1, 9),
    part=st.integers(1, 5),
)
def test_any_division_holds_the_same_rows(tmp_path: Path, patients: list[int], rows: int, part: int) -> None:
    config = ward(tmp_path / "ward.csv", patients, [str(place) for place in range(len(patients))])
    stored = store(config, tmp_path, rows, part)
    same(stored, config)
    assert len(stored.files) == -(-len(set(patients)) // part)
    assert "constant" in [x.column for x in stored.about.left_out]


@pytest.mark.parametrize("site", ["synthetic/synthetic-north", "ist/ist-italy"])
def test_shipped_sites_are_the_same(tmp_path: Path, site: str) -> None:
    if site.startswith("ist") and not IST.exists():
        pytest.skip("the International Stroke Trial is not here")
    config = read_registry_config(ROOT / "site_configs" / f"{site}.toml")
    same(store(config, tmp_path, 97, 130), config)


def test_faults_are_counted_over_all_batches_and_nothing_stays_on_the_disk(tmp_path: Path) -> None:
    lab = ["1", "low", "2", "3", "<4", "5", "high", "6"]
    config = ward(tmp_path / "ward.csv", [5, 6, 7, 8, 1, 2, 3, 4], lab)
    with pytest.raises(UserError) as whole:
        load_registry(config)
    with pytest.raises(UserError) as stored:
        store(config, tmp_path, 2, 3)
    assert str(stored.value) == str(whole.value) and "3 of 8 values" in str(whole.value)
    with pytest.raises(UserError), stored_registry(config, tmp_path / "site"):
        raise AssertionError("unreachable")
    assert not list((tmp_path / "site").iterdir())


def test_a_patient_twice_in_two_batches_is_refused(tmp_path: Path) -> None:
    config = ward(tmp_path / "ward.csv", [1, 2, 3, 4, 1], list("12345")).model_copy(
        update={"one_row_per_patient": True}
    )
    with pytest.raises(UserError, match="1 rows repeat"):
        store(config, tmp_path, 2, 2)
