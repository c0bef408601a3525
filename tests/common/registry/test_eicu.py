"""The eICU demo by region: real stays, hours and labels."""

from pathlib import Path

import polars as pl
import pytest

from common.registry.config import RegistryConfig, read_registry_config
from common.registry.registry import Registry, concat_registries, load_registry

FOLDER = Path(__file__).parents[3] / "site_configs" / "eicu"
TRAIN = ("midwest", "south", "west", "northeast")


@pytest.fixture(scope="module")
def configs() -> dict[str, RegistryConfig]:
    configs = {p.stem.removeprefix("eicu-"): read_registry_config(p) for p in sorted(FOLDER.glob("[a-z]*.toml"))}
    place = Path(configs["south"].table.path)
    if not place.exists():
        pytest.skip(f"the eICU demo is not at {place.parent}; set WARDROUND_EICU to its folder")
    return configs


@pytest.fixture(scope="module")
def sites(configs: dict[str, RegistryConfig]) -> dict[str, Registry]:
    return {name: load_registry(config) for name, config in configs.items()}


def test_no_patient_is_at_two_sites_and_all_of_them_pool(sites: dict[str, Registry]) -> None:
    pooled = concat_registries(list(sites.values()), "all")
    assert sorted(pooled.frame["patient"].unique()) == sorted({p for s in sites.values() for p in s.frame["patient"]})
    assert len(sites) == 6 and all(site.frame.height > 50 for site in sites.values())


def test_a_patient_may_have_several_records(sites: dict[str, Registry]) -> None:
    frame = sites["south"].frame
    assert frame.height > frame["patient"].n_unique()


def test_windows_hold_what_the_table_of_hours_says(configs: dict[str, RegistryConfig]) -> None:
    """The last creatinine of hours 16 to 24 and the urine of hours 36 to 48, summed by hand, over all sites."""
    rows = configs["south"].hourly
    assert rows is not None and rows.table is not None
    dynamic = pl.read_parquet(rows.table.path).with_columns(pl.col("time").dt.total_hours())
    stays = pl.read_csv(configs["south"].table.path, infer_schema=False, columns=["patientunitstayid", "uniquepid"])
    people = dict(stays.iter_rows())
    last, total = {}, {}
    for row in dynamic.sort("time").select("stay_id", "time", "crea", "urine").iter_rows():
        stay, time, crea, urine = row
        if 16 <= time < 24 and crea is not None:
            last[stay] = crea
        if 36 <= time < 48 and urine is not None and 0 <= urine <= 4000:
            total[stay] = total.get(stay, 0.0) + urine
    seen = set(dynamic.filter(pl.col("time") >= 24)["stay_id"])
    everyone = configs["south"].model_copy(
        update={"table": configs["south"].table.model_copy(update={"where": {}, "where_not": {}, "home": ""})}
    )
    frame = load_registry(everyone).frame
    assert frame.height == len(seen)
    for column, wanted in (("crea @-8h", last), ("urine @+12h", total)):
        by_hand = sorted((people[str(s)], round(x, 2)) for s, x in wanted.items() if s in seen)
        found = frame.filter(pl.col(column).is_not_null()).select("patient", pl.col(column).round(2))
        assert sorted(found.iter_rows()) == by_hand


def test_kidney_injury_is_asked_of_stays_without_it_at_hour_24(configs: dict[str, RegistryConfig]) -> None:
    """Onset is 6 h after the first positive label: yes in [24, 72), nobody who had it before hour 24."""
    hourly = configs["south"].hourly
    assert hourly is not None
    label = next(x for x in hourly.labels if x.column == "aki_48h")
    assert label.table is not None
    first = (
        pl.read_parquet(label.table.path)
        .filter(pl.col("label"))
        .group_by("stay_id")
        .agg(pl.col("time").min().dt.total_hours())
    )
    onset = (first["time"] + 6).to_list()
    everyone = configs["south"].table.model_copy(update={"where": {}, "where_not": {}, "home": ""})
    frame = load_registry(configs["south"].model_copy(update={"table": everyone})).frame
    assert (frame["aki_48h"] == "yes").sum() == sum(24 <= hour < 72 for hour in onset)


def test_nobody_dies_in_the_record_that_is_shown(sites: dict[str, Registry]) -> None:
    for site in sites.values():
        later = {f.column for f in site.features if f.known == "outcome"}
        assert "actualhospitalmortality" in later
        assert {o.column for o in site.outcomes} == later
        assert all("@+" in column or column in ("actualhospitalmortality", "aki_48h", "sepsis_48h") for column in later)
