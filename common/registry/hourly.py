"""From a table of stays and its measurements to records: one row for each stay and time of prediction.

What a record shows is over by its time of prediction: a row that was measured until later is not in any shown window.
Windows are open at their start and closed at their end, which is when a row is known.
"""

import polars as pl

from common.errors import UserError
from common.registry.config import RegistryConfig
from common.registry.header import ROW
from common.registry.hourly_config import Hourly, Rows, Variable, at
from common.registry.hourly_labels import with_label
from common.registry.measurements import STAY, TIME, read_measurements, summed
from common.registry.meds import read_events, read_hours, read_stays
from common.registry.meds_config import Meds
from common.registry.readers import as_strings

HOUR = "#hour"
"""The time of prediction in hours; a feature may be declared on it where there are several."""


def event_records(config: RegistryConfig, meds: Meds, hourly: Hourly) -> pl.LazyFrame:
    """As `hourly_records`, from a table of events, which gives the stays as well (`read_stays`).

    Raises:
        UserError: faults of the events.
    """
    events = read_events(config.table, meds)
    stays = read_stays(events, meds, config.table.place)
    measured = read_hours(events, stays, hourly.variables, config.table.place)
    static = as_strings(stays, config.table.place).lazy().with_columns(pl.col("stay").alias(STAY))
    return records(static, measured, hourly, stays)


def hourly_records(
    static: pl.LazyFrame, config: RegistryConfig, hourly: Hourly, table: Rows, source: str
) -> pl.LazyFrame:
    """The table of stays with its rows repeated for each time of prediction at which the stay was still observed, and
    the columns that `[hourly]` declares; all as text.

    Raises:
        UserError: a stay without identifier, or twice; faults of the measurements and labels.
    """
    starts = {x.start for x in (table, *(label.table for label in hourly.labels)) if x and x.start}
    static = stays_of(static, config, hourly, source, starts)
    stays = static.select(STAY, *sorted(starts)).collect()
    measured = read_measurements(table, hourly.variables, stays, hourly.earliest)
    return records(static, measured, hourly, stays)


def stays_of(
    static: pl.LazyFrame, config: RegistryConfig, hourly: Hourly, source: str, starts: set[str]
) -> pl.LazyFrame:
    """The table of stays with `STAY`, one row each.

    Raises:
        UserError: a column is missing; a stay has no identifier, stands twice, or has two patients.
    """
    missing = sorted({hourly.stay, config.patient, *starts} - set(static.collect_schema().names()))
    if missing:
        raise UserError(f"{source}: there is no column {missing[0]!r}.", "Correct it in the site file.")
    marks = ["", *config.table.missing]
    static = static.with_columns(pl.col(hourly.stay).str.strip_chars().alias(STAY))
    static = static.filter(~pl.col(STAY).is_in(marks).fill_null(True))
    patients = pl.col(config.patient).n_unique().over(STAY)
    rows, stays, shared = (
        static.select(pl.len(), pl.col(STAY).n_unique(), (patients > 1).sum().alias("shared")).collect().row(0)
    )
    if shared:
        raise UserError(
            f"{source}: {shared} rows are about a stay ({hourly.stay!r}) that has two patients ({config.patient!r}).",
            "Correct the table: a stay is one patient's.",
        )
    if hourly.table and hourly.table.path == config.table.path:
        return static.unique(STAY, keep="first", maintain_order=True)
    if rows > stays:
        raise UserError(
            f"{source}: {rows - stays} rows repeat a stay ({hourly.stay!r}).", "Keep one row for each stay."
        )
    return static


def records(static: pl.LazyFrame, measured: pl.LazyFrame, hourly: Hourly, stays: pl.DataFrame) -> pl.LazyFrame:
    """As `hourly_records`, once the measurements are read: `STAY`, `TIME` and one column of numbers a variable."""
    measured = measured.with_columns((pl.col(TIME) + hourly.row_hours).alias("#known"))
    parts = [record_columns(measured, hourly, moment) for moment in hourly.predict_at]
    wide = pl.concat(parts)
    for label in hourly.labels:
        wide = with_label(wide, label, hourly, stays)
    joined = static.drop(ROW).join(wide.lazy(), on=STAY, how="inner", maintain_order="left_right").drop(STAY)
    return as_strings(joined.collect(), "hourly").lazy()


def record_columns(measured: pl.LazyFrame, hourly: Hourly, moment: float) -> pl.DataFrame:
    """`STAY`, `HOUR` and the windows and targets, for the stays that have a row at or after `moment`."""
    out = measured.filter(pl.col(TIME) >= moment).select(STAY).unique().sort(STAY).collect()
    out = out.with_columns(pl.lit(moment).alias(HOUR))
    for start, end in hourly.shown:
        out = out.join(window(measured, hourly.variables, moment, start, end), on=STAY, how="left")
    if hourly.asked:
        out = out.join(window(measured, hourly.asked, moment, *hourly.target), on=STAY, how="left")
    return out


def window(
    measured: pl.LazyFrame, variables: tuple[Variable, ...] | list[Variable], moment: float, start: float, end: float
) -> pl.DataFrame:
    """Each stay's rows that became known in the window, summed up by each variable's rule.

    Only these rows are read. They are put in order first, so that the order of a file changes nothing, not even the
    last bit of a sum.
    """
    within = (pl.col("#known") > moment + start) & (pl.col("#known") <= moment + end)
    rows = measured.filter(within).sort(STAY, TIME)
    sums = [rounded(summed(pl.col(v.column), v), v).alias(at(v, start)) for v in variables]
    return rows.group_by(STAY, maintain_order=True).agg(sums).collect()


def rounded(value: pl.Expr, variable: Variable) -> pl.Expr:
    return value if variable.decimals is None else value.round(variable.decimals)
