"""Events in the Medical Event Data Standard (MEDS: subject, time, code, value) as stays and hourly measurements.

https://medical-event-data-standard.github.io. Everything that a code means is declared.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import Table
from common.registry.hourly_config import Variable
from common.registry.measurements import MICROSECONDS, STAY, TIME, check_typical, summed
from common.registry.meds_config import Meds
from common.registry.readers import first_bytes

YEAR = 365.25
"""Days."""
EVERYTHING = (-float("inf"), float("inf"))
SUBJECT, WHEN, CODE, VALUE = "#subject", "#when", "#code", "#value"


def read_events(table: Table, meds: Meds) -> pl.LazyFrame:
    """`SUBJECT`, `WHEN`, `CODE`, `VALUE` of one Parquet file or of all in a folder.

    Raises:
        UserError: no such file, not Parquet, a column is missing or of another type.
    """
    path = Path(table.path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: there is no Parquet file in this folder.", table.get or "Correct table.path.")
    for file in files:
        first_bytes(file, table.get)
    events = pl.scan_parquet(files)
    try:
        schema = events.collect_schema()
    except pl.exceptions.ComputeError:
        raise UserError(f"{path}: not a Parquet file, or a damaged one.", "Export the table again.") from None
    for column in (meds.subject, meds.time, meds.code, meds.value):
        if column not in schema:
            raise UserError(f"{path}: there is no column {column!r}.", "Correct it in [meds].")
    kinds = {meds.time: schema[meds.time].is_temporal(), meds.code: schema[meds.code] in (pl.String, pl.Categorical)}
    kinds[meds.value] = schema[meds.value].is_numeric()
    for column, right in kinds.items():
        if not right:
            raise UserError(f"{path}: the column {column!r} has the wrong type.", "See the MEDS schema.")
    return events.select(
        pl.col(meds.subject).cast(pl.String).alias(SUBJECT),
        pl.col(meds.time).cast(pl.Datetime("us")).alias(WHEN),
        pl.col(meds.code).cast(pl.String).alias(CODE),
        pl.col(meds.value).cast(pl.Float64).alias(VALUE),
    )


def begins(codes: Sequence[str]) -> pl.Expr:
    return pl.any_horizontal(pl.col(CODE).str.starts_with(code) for code in codes)


def read_stays(events: pl.LazyFrame, meds: Meds, source: str) -> pl.DataFrame:
    """One row for each stay: `stay`, `patient`, `start`, `end`, `unit`, `age` (whole years), `sex`, `died` (yes or no).

    `end` is null where the stay did not end, `died` where the patient did not leave the hospital.

    Raises:
        UserError: no event begins a stay, or one without subject or time does.
    """
    started = events.filter(begins(meds.start)).sort(WHEN, SUBJECT, CODE).collect()
    started = started.unique([SUBJECT, WHEN], keep="first", maintain_order=True)
    nowhere = started.filter(pl.col(SUBJECT).is_null() | pl.col(WHEN).is_null()).height
    if started.is_empty() or nowhere:
        what = f"{nowhere} events that begin a stay have no subject or time" if nowhere else "no event begins a stay"
        raise UserError(f"{source}: {what}.", "Correct meds.start, or export the events again.")
    rest = [pl.when(pl.col(CODE).str.starts_with(x)).then(pl.col(CODE).str.strip_prefix(x)) for x in meds.start]
    number = pl.int_range(1, pl.len() + 1).over(SUBJECT).cast(pl.String)
    stays = started.select(
        SUBJECT, WHEN, pl.coalesce(rest).alias("unit"), (pl.col(SUBJECT) + "-" + number).alias("stay")
    )
    for column, codes in (("end", meds.end), ("left", meds.discharge)):
        after = events.filter(begins(codes)).select(
            SUBJECT, pl.col(WHEN).alias(column), pl.col(CODE).alias(f"{column} by")
        )
        stays = stays.join_asof(
            after.sort(column, f"{column} by").collect(),
            left_on=WHEN,
            right_on=column,
            by=SUBJECT,
            strategy="forward",
            check_sortedness=False,
        )
    born = events.filter(pl.col(CODE) == meds.birth).group_by(SUBJECT).agg(pl.col(WHEN).min().alias("born"))
    sexes = events.filter(pl.col(CODE).is_in(list(meds.sex))).group_by(SUBJECT)
    sex = sexes.agg(pl.col(CODE).min().replace(meds.sex).alias("sex"))
    stays = stays.join(born.collect(), on=SUBJECT, how="left").join(sex.collect(), on=SUBJECT, how="left")
    died = pl.any_horizontal(pl.col("left by").str.starts_with(code) for code in meds.died)
    return stays.select(
        "stay",
        pl.col(SUBJECT).alias("patient"),
        pl.col(WHEN).alias("start"),
        "end",
        "unit",
        ((pl.col(WHEN) - pl.col("born")).dt.total_days() / YEAR).floor().cast(pl.Int64).alias("age"),
        "sex",
        pl.when(died).then(pl.lit("yes")).when(~died).then(pl.lit("no")).alias("died"),
    ).sort("patient", "start")


def read_hours(events: pl.LazyFrame, stays: pl.DataFrame, variables: Sequence[Variable], source: str) -> pl.LazyFrame:
    """`STAY`, `TIME` (whole hours since the stay's start) and one Float64 column for each variable.

    An event belongs to the stay that began last before it, unless that one had ended. The events of one hour are
    summed up by the variable's rule.

    Raises:
        UserError: a variable has no code, or its median is not `typical`.
    """
    for variable in variables:
        if not variable.codes:
            raise UserError(f"{source}: the variable {variable.column!r} has no codes.", "Give hourly.variables codes.")
    meanings = pl.DataFrame(
        [(x.code, v.column, x.factor, x.offset, *(v.plausible or EVERYTHING)) for v in variables for x in v.codes],
        schema=dict.fromkeys((CODE, "variable"), pl.String)
        | dict.fromkeys(("factor", "offset", "low", "high"), pl.Float64),
        orient="row",
    )
    values = (
        events.filter(pl.col(VALUE).is_finite() & pl.col(WHEN).is_not_null())
        .join(meanings.lazy(), on=CODE)
        .with_columns(pl.col(VALUE) * pl.col("factor") + pl.col("offset"))
        .filter(pl.col(VALUE).is_between(pl.col("low"), pl.col("high")))
    )
    places = stays.lazy().select(pl.col("patient").alias(SUBJECT), pl.col("stay").alias(STAY), "start", "end")
    hour = ((pl.col(WHEN) - pl.col("start")).dt.total_microseconds() / MICROSECONDS).floor()
    measured = (
        values.sort(WHEN, "variable", VALUE)
        .join_asof(places.sort("start"), left_on=WHEN, right_on="start", by=SUBJECT, check_sortedness=False)
        .filter(pl.col(STAY).is_not_null() & (pl.col("end").is_null() | (pl.col(WHEN) <= pl.col("end"))))
        .group_by(STAY, hour.alias(TIME), maintain_order=True)
        .agg(summed(pl.col(VALUE).filter(pl.col("variable") == v.column), v).alias(v.column) for v in variables)
        .collect()
        .lazy()
    )
    check_typical(measured, variables, source)
    return measured
