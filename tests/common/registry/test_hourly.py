"""Measurements over time become records that show nothing from after their time of prediction."""

import math
import random
import re
import textwrap
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from common.errors import UserError
from common.registry.config import RegistryConfig, read_registry_config
from common.registry.hourly import HOUR, records
from common.registry.hourly_config import Hourly
from common.registry.measurements import STAY, TIME
from common.registry.registry import Registry, load_registry, read_source

SECRET = "Zaphod"
RULES = ("last", "mean", "min", "max", "sum")
DECLARED = Hourly.model_validate(
    {
        "stay": "stay",
        "predict_at": [8, 12],
        "window": 4,
        "windows": 2,
        "variables": [{"column": rule, "name": rule.title(), "aggregate": rule} for rule in RULES],
        "forecast": {"ahead": 6, "window": 2},
        "table": {"path": "unused", "stay": "stay", "time": "time"},
    }
)
Row = tuple[str, float, dict[str, float | None]]


@st.composite
def measurements(draw: st.DrawFn) -> list[Row]:
    """Rows of up to four stays at distinct times, not only whole hours, each with up to five values."""
    value = st.none() | st.floats(-50, 300, allow_nan=False).map(lambda x: round(x, 3))
    rows: list[Row] = []
    for stay in range(draw(st.integers(1, 4))):
        quarters = draw(st.lists(st.integers(0, 80), unique=True, max_size=12))
        rows += [(f"s{stay}", q / 4, {rule: draw(value) for rule in RULES}) for q in quarters]
    return rows


def built(rows: list[Row], hourly: Hourly = DECLARED) -> pl.DataFrame:
    columns = {STAY: pl.String, TIME: pl.Float64, **dict.fromkeys(RULES, pl.Float64)}
    measured = pl.DataFrame(
        [(stay, time, *values.values()) for stay, time, values in rows], schema=columns, orient="row"
    )
    static = pl.DataFrame({"#row": ["1"] * 4, STAY: [f"s{n}" for n in range(4)], "id": list("abcd")})
    return records(static.lazy(), measured.lazy(), hourly, static.select(STAY)).collect()


def by_hand(rows: list[Row], stay: str, rule: str, after: float, until: float) -> float | None:
    inside = sorted((time, values[rule]) for s, time, values in rows if s == stay and after < time + 1 <= until)
    found = [value for _, value in inside if value is not None]
    if not found:
        return None
    if rule == "last":
        return found[-1]
    return {"mean": math.fsum(found) / len(found), "sum": math.fsum(found), "min": min(found), "max": max(found)}[rule]


@settings(deadline=None, max_examples=40)
@given(measurements())
def test_every_cell_is_what_a_plain_loop_makes_of_the_rows(rows: list[Row]) -> None:
    table = built(rows)
    stays = {"a": "s0", "b": "s1", "c": "s2", "d": "s3"}
    last = {stay: max(time for s, time, _ in rows if s == stay) for stay in {s for s, _, _ in rows}}
    expected = [(i, t) for i, s in stays.items() for t in (8, 12) if last.get(s, -1) >= t]
    assert [(row["id"], float(row[HOUR])) for row in table.iter_rows(named=True)] == expected
    for row in table.iter_rows(named=True):
        now = float(row[HOUR])
        for start, end in ((-8, -4), (-4, 0), (4, 6)):
            for rule in RULES:
                cell, wanted = row[f"{rule} @{start:+}h"], by_hand(rows, stays[row["id"]], rule, now + start, now + end)
                assert (cell is None) == (wanted is None)
                if cell is not None:
                    assert float(cell) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(measurements(), st.floats(-1e6, 1e6))
def test_nothing_that_is_measured_later_reaches_what_is_shown(rows: list[Row], other: float) -> None:
    """All values that are not over at a time of prediction become another one: the shown columns stay as they are."""
    shown = [f"{rule} @{start:+}h" for start in (-8, -4) for rule in RULES]
    table = built(rows)
    for moment in (8, 12):
        changed = [
            (stay, time, values if time + 1 <= moment else dict.fromkeys(RULES, other)) for stay, time, values in rows
        ]
        then = pl.col(HOUR) == str(moment)
        assert_frame_equal(built(changed).filter(then).select("id", *shown), table.filter(then).select("id", *shown))


@settings(deadline=None, max_examples=25)
@given(measurements(), st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[Row], chance: random.Random) -> None:
    turned = rows.copy()
    chance.shuffle(turned)
    assert_frame_equal(built(turned), built(rows))


STAYS = "stay,patient,sex,begin\n1,p1,M,2024-03-01 10:00\n2,p1,M,2024-05-01 00:00\n3,p2,F,2024-05-02 12:30\n"
HOURS = [(stay, hour, 60.0 + stay + hour if hour % 3 else None) for stay in (1, 2, 3) for hour in range(7)]


def declare(folder: Path, measured: pl.DataFrame | None = None, **changes: Any) -> RegistryConfig:
    """A hospital with three stays of two patients, hours 0 to 6, predicted at hour 4."""
    (folder / "stays.csv").write_text(changes.pop("stays", STAYS))
    rows = measured if measured is not None else pl.DataFrame(HOURS, schema=["stay", "time", "hr"], orient="row")
    if changes.pop("as_csv", False):
        rows.write_csv(folder / "hours.csv")
    else:
        rows.write_parquet(folder / "hours.parquet")
    kind = "csv" if (folder / "hours.csv").exists() else "parquet"
    table = {"source": kind, "path": f"hours.{kind}", "stay": "stay", "time": "time", **changes.pop("table", {})}
    values = {
        "site": "here",
        "patient": "patient",
        "one_row_per_patient": False,
        "table": {"source": "csv", "path": "stays.csv"},
        "features": [{"column": "sex", "name": "Sex", "section": "Patient", "kind": "category"}],
        "hourly": {
            "stay": "stay",
            "predict_at": [4],
            "window": 2,
            "windows": 2,
            "variables": [{"column": "hr", "name": "Heart rate", "unit": "/min"}],
            "table": table,
            **changes,
        },
    }
    return read_registry_config(folder / "here.toml", values)


def load(folder: Path, measured: pl.DataFrame | None = None, **changes: Any) -> Registry:
    return load_registry(declare(folder, measured, **changes))


def test_windows_are_ordinary_features_of_one_variable(tmp_path: Path) -> None:
    registry = load(tmp_path, forecast={"ahead": 2, "window": 2})
    assert [(f.column, f.section, f.known, f.ask) for f in registry.features] == [
        ("sex", "Patient", "baseline", True),
        ("hr @-4h", "Hours 0 to 2", "baseline", True),
        ("hr @-2h", "Hours 2 to 4", "baseline", True),
        ("hr @+0h", "Hours 4 to 6", "outcome", False),
    ]
    assert {f.variable for f in registry.features[1:]} == {"hr"}
    assert registry.frame.rows() == [
        ("p1", "M", 62.0, 63.0, 65.5),
        ("p1", "M", 63.0, 64.0, 66.5),
        ("p2", "F", 64.0, 65.0, 67.5),
    ]
    asked = registry.outcomes[0]
    assert (asked.column, asked.task) == ("hr @+0h", "forecast")
    assert asked.question == "What will Heart rate (/min) be 0 to 2 h from now (mean of what is measured)?"


def test_a_stay_that_is_over_before_the_time_of_prediction_gives_no_record(tmp_path: Path) -> None:
    rows = pl.DataFrame([r for r in HOURS if r[0] != 2 or r[1] < 4], schema=["stay", "time", "hr"], orient="row")
    assert load(tmp_path, rows).frame["patient"].to_list() == ["p1", "p2"]


def test_all_ways_to_write_time_are_one(tmp_path: Path) -> None:
    plain = pl.DataFrame(HOURS, schema=["stay", "time", "hr"], orient="row")
    hours = pl.col("time")
    begins = {1: datetime(2024, 3, 1, 10), 2: datetime(2024, 5, 1), 3: datetime(2024, 5, 2, 12, 30)}
    clock = pl.Series("time", [begins[stay] + timedelta(hours=hour) for stay, hour, _ in HOURS])
    wanted = load(tmp_path, plain).frame
    for rows, table in (
        (plain.with_columns(pl.duration(hours=hours).alias("time")), {}),
        (plain.with_columns(hours * 60), {"time_unit": "minutes"}),
        (plain.with_columns(clock), {"start": "begin"}),
    ):
        assert_frame_equal(load(tmp_path, rows, table=table).frame, wanted)
    assert_frame_equal(
        load(tmp_path, plain.with_columns(clock.dt.to_string()), table={"start": "begin"}, as_csv=True).frame, wanted
    )


def test_a_stay_id_with_gaps_is_still_a_whole_number(tmp_path: Path) -> None:
    plain = pl.DataFrame(HOURS, schema=["stay", "time", "hr"], orient="row")
    assert load(tmp_path, plain.with_columns(pl.col("stay").cast(pl.Float64))).frame.height == 3


def refused(folder: Path, message: str, measured: pl.DataFrame | None = None, **changes: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(folder, measured, **changes)
    assert str(folder) in caught.value.what
    assert caught.value.remedy
    assert SECRET not in str(caught.value)


BAD: dict[str, tuple[list[tuple[Any, Any, Any]], str]] = {
    "missing time": ([(1, None, 60.0)], "the time 'time' is empty in 1 of 22 rows"),
    "negative time": ([(1, -2, 60.0), (2, -1, 60.0)], "2 of 23 rows are from before hour 0"),
    "unknown stay": ([(9, 0, 60.0), (9, 1, 60.0)], "1 stays of the column 'stay' are not in the table of stays"),
    "no stay": ([(None, 0, 60.0)], "the column 'stay' is empty in 1 of 22 rows"),
    "time twice": ([(1, 3, 60.0)], "1 of 22 rows repeat a stay and time"),
}


@pytest.mark.parametrize("name", BAD)
def test_faulty_rows_are_counted_and_refused(tmp_path: Path, name: str) -> None:
    rows, message = BAD[name]
    refused(tmp_path, message, pl.DataFrame([*HOURS, *rows], schema=["stay", "time", "hr"], orient="row"))


def test_values_and_times_that_are_no_numbers_are_counted_and_refused(tmp_path: Path) -> None:
    plain = pl.DataFrame(HOURS, schema=["stay", "time", "hr"], orient="row").cast(pl.String)
    odd = pl.DataFrame({"stay": ["1"], "time": ["9"], "hr": [SECRET]})
    refused(tmp_path, "1 values of the column 'hr' are not numbers", pl.concat([plain, odd]))
    late = pl.DataFrame({"stay": ["1"], "time": [SECRET], "hr": ["60"]})
    refused(tmp_path, "1 of 22 values of the time 'time' cannot be read", pl.concat([plain, late]))


def test_a_faulty_table_of_stays_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "1 rows repeat a stay", stays=f"{STAYS}3,p2,F,2024-05-02 12:30\n")
    refused(tmp_path, "2 rows are about a stay .* two patients", stays=f"{STAYS}3,{SECRET},F,2024-05-02 12:30\n")
    refused(tmp_path, "no column 'label'", labels=[label()])


def test_a_table_in_other_units_is_refused_and_the_implausible_is_not_measured(tmp_path: Path) -> None:
    variable = {"column": "hr", "name": "Heart rate"}
    refused(
        tmp_path, "the median of the column 'hr' is not between 1 and 3", variables=[{**variable, "typical": [1, 3]}]
    )
    frame = load(tmp_path, variables=[{**variable, "plausible": [62.5, 64.5]}]).frame
    assert frame["hr @-4h"].to_list() == [None, 63.0, 64.0]


def label(**changes: Any) -> dict[str, Any]:
    return {"column": "event", "name": "Event", "question": "Will it come?", "label": "label", **changes}


@pytest.mark.parametrize(
    ("first", "length", "answer"),
    [
        (None, 7, "no"),  # looked at until hour 7, the end of the horizon
        (None, 6, None),  # nobody looked in the last hour
        (0, 7, None),  # had it at hour 2, before the time of prediction
        (2, 7, "yes"),  # at hour 4, which is not over yet
        (4, 5, "yes"),  # at hour 6, though labels end at 5
        (5, 7, "no"),  # at hour 7: after the horizon
    ],
)
def test_an_event_is_asked_of_those_without_it_who_were_looked_at(
    tmp_path: Path, first: int | None, length: int, answer: str | None
) -> None:
    rows = [(1, hour, first is not None and hour >= first) for hour in range(length)]
    known = [(2, hour, hour == 3) for hour in range(7)]
    pl.DataFrame([*rows, *known], schema=["stay", "time", "label"], orient="row").write_parquet(tmp_path / "l.parquet")
    table = {"path": "l.parquet", "stay": "stay", "time": "time"}
    control = label(column="control", name="Control", table=table)
    event = label(lead=2, horizon=3, table=table)
    frame = read_wide(declare(tmp_path, labels=[event, control]))
    assert frame["event"].to_list() == [answer, "yes", None]
    assert frame["control"].to_list() == ["no" if first is None else "yes", "yes", None]


def read_wide(config: RegistryConfig) -> pl.DataFrame:
    """The records before columns without two values are left out."""
    return read_source(config, config.table.place).collect()


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    rows = pl.DataFrame([(1, 0, 2)], schema=["stay", "time", "label"], orient="row")
    rows.write_parquet(tmp_path / "l.parquet")
    table = {"path": "l.parquet", "stay": "stay", "time": "time"}
    refused(tmp_path, "1 values of the label 'label' are neither", labels=[label(table=table)])


def test_one_table_can_hold_stays_and_measurements(tmp_path: Path) -> None:
    text = "stay,patient,sex,time,hr\n" + "".join(f"{s},p{s},{'MF'[s % 2]},{h},{v or ''}\n" for s, h, v in HOURS)
    (tmp_path / "hours.csv").write_text(text)
    config = declare(tmp_path, pl.DataFrame({"unused": [1]}))
    table = config.table.model_copy(update={"path": str(tmp_path / "hours.csv")})
    assert config.hourly is not None
    config = config.model_copy(update={"table": table})
    rows = config.hourly.table
    assert rows is not None and rows.path == str(tmp_path / "hours.csv")
    assert load_registry(config).frame.rows() == [
        ("p1", "F", 62.0, 63.0),
        ("p2", "M", 63.0, 64.0),
        ("p3", "F", 64.0, 65.0),
    ]


def test_a_patient_of_two_hospitals_stays_with_the_first(tmp_path: Path) -> None:
    config = declare(tmp_path, stays=STAYS.replace("p1,M,2024-05", "p2,M,2024-05").replace("begin\n1", "begin\n1"))
    home = {"home": "sex"}
    frame = load_registry(config.model_copy(update={"table": config.table.model_copy(update=home)})).frame
    assert frame.rows() == [("p1", 62.0, 63.0), ("p2", 63.0, 64.0)]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "times": ({"predict_at": [4, 4]}, "names a time twice"),
    "section": ({"section": "Day"}, "the same for two windows"),
    "braces": ({"section": "Hours {from}"}, "not a text with"),
    "forecast": ({"forecast": {"variables": ["bp"]}}, "no variable"),
    "overlap": ({"forecast": {"ahead": 1}}, "raise ahead|Raise ahead"),
    "variable twice": ({"variables": [{"column": "hr", "name": "A"}] * 2}, "declared twice"),
    "range": ({"variables": [{"column": "hr", "name": "A", "plausible": [3, 1]}]}, "not below"),
    "category": ({"variables": [{"column": "hr", "name": "A", "kind": "category"}]}, "give its values"),
    "label": ({"labels": [label(positive=["1"], negative=["1"])]}, "positive and negative"),
}


@pytest.mark.parametrize("name", WRONG)
def test_declarations_that_cannot_work_are_refused(tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        declare(tmp_path, **changes)


def test_the_examples_of_the_page_are_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "hourly.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)]
    tables = [tomllib.loads(block) for block in blocks]
    features = [{"column": "sex", "name": "Sex", "section": "Patient", "kind": "category"}]
    for values in tables:
        values = {"site": "here", "patient": "patient", "features": features, **values}
        if "meds" in values:
            values["hourly"]["stay"] = "stay"
        config = read_registry_config(tmp_path / "here.toml", values)
        assert config.hourly is not None and config.outcomes or config.meds is not None
    assert len(tables) == 2
