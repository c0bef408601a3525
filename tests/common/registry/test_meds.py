"""Events become stays and hours by the declared meaning of their codes."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.errors import UserError
from common.registry.config import RegistryConfig, Table, read_registry_config
from common.registry.hourly_config import Variable
from common.registry.measurements import STAY, TIME
from common.registry.meds import read_events, read_hours, read_stays
from common.registry.meds_config import Meds
from common.registry.registry import load_registry

DEMO = Path(__file__).parents[3] / "site_configs" / "mimic4_meds" / "mimic4-demo.toml"
MEANING = Meds(
    start=("ICU_IN//",), end=("ICU_OUT//",), sex={"GENDER//F": "female"}, discharge=("HOME", "DIED"), died=("DIED",)
)
TEMPERATURE = Variable.model_validate(
    {
        "column": "temp",
        "name": "Temperature",
        "aggregate": "max",
        "plausible": [30, 43],
        "codes": [{"code": "C"}, {"code": "F", "factor": 5 / 9, "offset": -160 / 9}],
    }
)
DRINK = Variable.model_validate({"column": "ml", "name": "Drink", "aggregate": "sum", "codes": [{"code": "ML"}]})
BEGIN = datetime(2150, 3, 1, 10, 0)
Event = tuple[int | None, datetime | None, str, float | None]
EVENTS: list[Event] = [
    (7, None, "GENDER//F", None),
    (7, datetime(2090, 3, 2), "BIRTH", None),
    (7, BEGIN - timedelta(minutes=1), "C", 36.0),  # before the stay
    (7, BEGIN, "ICU_IN//Surgical", None),
    (7, BEGIN, "C", 37.0),
    (7, BEGIN + timedelta(minutes=59), "F", 100.4),
    (7, BEGIN + timedelta(minutes=30), "F", 37.0),  # 2.8 degrees: not plausible
    (7, BEGIN + timedelta(hours=1), "ML", 200.0),
    (7, BEGIN + timedelta(hours=1, minutes=5), "ML", 50.0),
    (7, BEGIN + timedelta(hours=1, minutes=5), "ML", None),
    (7, BEGIN + timedelta(hours=2), "ICU_OUT//Surgical", None),
    (7, BEGIN + timedelta(hours=2, minutes=1), "C", 41.0),  # after the stay
    (7, BEGIN + timedelta(days=9), "HOME", None),
    (7, BEGIN + timedelta(days=20), "ICU_IN//Medical", None),
    (7, BEGIN + timedelta(days=20, hours=3), "C", 39.0),
    (7, BEGIN + timedelta(days=21), "DIED", None),
    (8, BEGIN, "ICU_IN//Medical", None),
]


def read(folder: Path, events: list[Event] = EVENTS, **meds: Any) -> tuple[pl.LazyFrame, pl.DataFrame]:
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    pl.DataFrame(events, schema=schema, orient="row").write_parquet(folder / "events.parquet")
    meaning = MEANING.model_copy(update={"birth": "BIRTH", **meds})
    found = read_events(Table(source="meds", path=str(folder)), meaning)
    return found, read_stays(found, meaning, str(folder))


def test_stays_run_from_one_code_to_another_and_tell_who_died(tmp_path: Path) -> None:
    _, stays = read(tmp_path)
    wanted = [
        ("7-1", "7", BEGIN, BEGIN + timedelta(hours=2), "Surgical", 59, "female", "no"),
        ("7-2", "7", BEGIN + timedelta(days=20), None, "Medical", 60, "female", "yes"),
        ("8-1", "8", BEGIN, None, "Medical", None, None, None),
    ]
    assert stays.rows() == wanted


def test_hours_hold_the_declared_codes_of_the_stay_in_its_unit(tmp_path: Path) -> None:
    events, stays = read(tmp_path)
    hours = read_hours(events, stays, [TEMPERATURE, DRINK], "here").sort(STAY, TIME).collect()
    assert hours.columns == [STAY, TIME, "temp", "ml"]
    assert [(stay, hour) for stay, hour, _, _ in hours.rows()] == [("7-1", 0.0), ("7-1", 1.0), ("7-2", 3.0)]
    assert hours["temp"].to_list() == [pytest.approx(38.0, abs=1e-4), None, 39.0]
    assert hours["ml"].to_list() == [None, 250.0, None]


def test_the_order_of_events_does_not_matter(tmp_path: Path) -> None:
    found = []
    for events in (EVENTS, EVENTS[::-1]):
        lazy, stays = read(tmp_path, events)
        found.append(
            (stays.rows(), read_hours(lazy, stays, [TEMPERATURE, DRINK], "here").sort(STAY, TIME).collect().rows())
        )
    assert found[0] == found[1]


def test_events_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no event begins a stay"):
        read(tmp_path, EVENTS[:3])
    with pytest.raises(UserError, match="1 events that begin a stay have no subject or time"):
        read(tmp_path, [*EVENTS, (None, BEGIN, "ICU_IN//Medical", None)])
    with pytest.raises(UserError, match="no column 'value'"):
        read(tmp_path, value="value")
    with pytest.raises(UserError, match="'code' has the wrong type"):
        read(tmp_path, value="code")
    events, stays = read(tmp_path)
    with pytest.raises(UserError, match="'temp' has no codes"):
        read_hours(events, stays, [TEMPERATURE.model_copy(update={"codes": ()})], "here")


@pytest.fixture(scope="module")
def demo() -> RegistryConfig:
    config = read_registry_config(DEMO)
    if not Path(config.table.path).exists():
        pytest.skip(f"the MIMIC-IV demo is not at {config.table.path}; set WARDROUND_MIMIC4_MEDS to its path")
    return config


def test_the_demo_of_mimic_iv_is_100_patients_with_140_stays(demo: RegistryConfig) -> None:
    assert demo.meds is not None
    events = read_events(demo.table, demo.meds)
    stays = read_stays(events, demo.meds, demo.table.path)
    assert (stays.height, stays["patient"].n_unique()) == (140, 100)
    assert stays.select(pl.all_horizontal(pl.col("end") > pl.col("start")).all()).item()
    # 15 of the 275 admissions end in death.
    assert stays.filter(pl.col("died") == "yes")["patient"].n_unique() == 15


def test_records_of_the_demo_equal_a_plain_loop(demo: RegistryConfig) -> None:
    """The last creatinine of hours 16 to 24, of every stay with a heart rate after hour 24."""
    assert demo.meds is not None
    stays = read_stays(read_events(demo.table, demo.meds), demo.meds, demo.table.path)
    events = pl.read_parquet(demo.table.path).filter(pl.col("value").is_not_null()).sort("time", "value")
    of = {code: events.filter(pl.col("code") == code) for code in ("LAB//50912//mg/dL", "LAB//220045//bpm")}
    by_hand = []
    for subject, start, end in stays.select("patient", "start", "end").iter_rows():
        inside = (pl.col("subject_id") == int(subject)) & pl.col("time").is_between(start, end)
        creatinine, heart = (rows.filter(inside) for rows in of.values())
        last = None
        for time, value in creatinine.select("time", "value").iter_rows():
            if timedelta(hours=16) <= time - start < timedelta(hours=24):
                last = round(value, 1)
        if last is not None and heart["time"].max() >= start + timedelta(hours=24):
            by_hand.append((subject, last))
    frame = load_registry(demo).frame
    assert len(by_hand) > 10
    found = frame.filter(pl.col("crea @-8h").is_not_null()).select("patient", "crea @-8h")
    assert sorted(found.iter_rows()) == sorted(by_hand)
