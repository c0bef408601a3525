"""The MIMIC-III cohort table: a generated one with exactly its columns, and the traps of the real one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import RegistryConfig, read_registry_config
from common.registry.registry import Registry, load_registry

CONFIG = Path(__file__).parents[3] / "site_configs" / "mimic3" / "mimic3-sepsis.toml"
FIRST = ["traj", "step", "m:presumed_onset", "m:charttime", "m:icustayid"]
OBSERVED = """gender mechvent max_dose_vaso re_admission age Weight_kg GCS HR SysBP MeanBP DiaBP RR Temp_C FiO2_1
Potassium Sodium Chloride Glucose Magnesium Calcium Hb WBC_count Platelets_count PTT PT Arterial_pH paO2 paCO2
Arterial_BE HCO3 Arterial_lactate SOFA SIRS Shock_Index PaO2_FiO2 cumulated_balance SpO2 BUN Creatinine SGOT SGPT
Total_bili INR input_total input_4hourly output_total output_4hourly""".split()
LAST = ["a:action", "r:reward"]
HOUR, STAYS, BINS = 3600, 40, 18
TYPICAL = {"HR": 90.0, "SysBP": 120.0, "Creatinine": 1.2, "age": 24000.0}


def cohort(seed: int = 1) -> pl.DataFrame:
    """40 stays of 18 bins; every third lacks its tenth bin, and bins do not begin on the onset's clock."""
    draw = np.random.default_rng(seed)
    rows = []
    for traj in range(1, STAYS + 1):
        onset = 4_000_000_000 + traj * 100_000
        first = onset - 28 * HOUR + int(draw.integers(0, 4 * HOUR))
        bins = [n for n in range(BINS) if traj % 3 or n != 9]
        gender, again, age = traj % 2, int(traj % 5 == 0), TYPICAL["age"] + 10 * traj
        for step, place in enumerate(bins):
            values = {name: round(float(draw.normal(TYPICAL.get(name, 50), 0.2)), 3) for name in OBSERVED}
            values |= {"gender": gender, "re_admission": again, "age": age, "mechvent": int(draw.integers(2))}
            reward = 0 if place < BINS - 1 else (-1 if traj % 4 == 0 else 1)
            head = (traj, step, onset, first + place * 4 * HOUR, 200_000 + traj)
            rows.append((*head, *values.values(), int(draw.integers(25)), reward))
    return pl.DataFrame(
        rows, schema=[*FIRST, *(f"o:{name}" for name in OBSERVED), *LAST], orient="row", infer_schema_length=None
    )


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return cohort()


def declare(table: pl.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RegistryConfig:
    table.write_csv(folder / "cohort.csv")
    monkeypatch.setenv("WARDROUND_MIMIC3_SEPSIS", str(folder / "cohort.csv"))
    return read_registry_config(CONFIG)


@pytest.fixture(scope="module")
def registry(table: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return load_registry(declare(table, tmp_path_factory.mktemp("cohort"), monkeypatch))


def test_every_column_of_the_cohort_is_used_or_named_as_unused(
    table: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = declare(table, tmp_path, monkeypatch)
    assert config.hourly is not None and table.width == 54
    static = {f.column for f in config.features if not f.variable and f.column != "died"}
    used = static | {v.column for v in config.hourly.variables} | {"r:reward", config.patient}
    assert used | set(config.never) == set(table.columns)
    assert not used & set(config.never)
    assert len(config.hourly.asked) == 43


def test_a_stay_is_one_record_with_blocks_by_onset(registry: Registry) -> None:
    assert registry.frame.height == STAYS
    headings = list(dict.fromkeys(f.section for f in registry.features if f.variable))
    assert headings == [f"Time: Onset{hour:+d}h" for hour in (*range(-24, 24, 4), 44)]
    assert registry.frame["o:age"].to_list()[0] == pytest.approx(24010 / 365.25)
    assert registry.frame["o:gender"].to_list()[:2] == ["female", "male"]


def test_bins_stand_by_the_clock_and_not_by_their_number(table: pl.DataFrame, registry: Registry) -> None:
    """Each cell is the one bin that ends in its 4 h; a bin that is not over after 24 h is in no shown block."""
    ends = (pl.col("m:charttime") - pl.col("m:presumed_onset")) / HOUR + 4
    bins = table.select("m:icustayid", ends.alias("end"), "o:HR").rows()
    for place, patient in enumerate(registry.frame["patient"]):
        of_stay = [(end, value) for stay, end, value in bins if str(stay) == patient]
        for start in (*range(-48, 0, 4), 20):
            found = [value for end, value in of_stay if start < end - 24 <= start + 4]
            assert registry.frame[f"o:HR @{start:+}h"][place] == (found[0] if found else None)
            assert len(found) <= 1


def test_death_is_the_reward_of_the_last_row_and_known_later(registry: Registry) -> None:
    died = dict(registry.frame.select("patient", "died").iter_rows())
    assert died == {str(200_000 + traj): "no" if traj % 4 else "yes" for traj in range(1, STAYS + 1)}
    assert {f.known for f in registry.features if f.column == "died"} == {"outcome"}


def test_the_normalised_sister_file_is_refused(
    table: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [((pl.col(c) - pl.col(c).mean()) / pl.col(c).std()).alias(c) for c in ("o:HR", "o:SysBP", "o:Creatinine")]
    config = declare(table.with_columns(scores), tmp_path, monkeypatch)
    with pytest.raises(UserError, match="median of the column 'o:HR'") as caught:
        load_registry(config)
    assert "normalised" in caught.value.remedy


def test_without_the_file_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_MIMIC3_SEPSIS", str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="no such file") as caught:
        load_registry(read_registry_config(CONFIG))
    assert "PhysioNet" in caught.value.remedy
