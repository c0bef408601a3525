"""Whether an event comes: from a table of labels by the hour to "yes", "no" or nothing for each record."""

import polars as pl

from common.errors import UserError
from common.registry.hourly_config import Hourly, Label, Rows
from common.registry.measurements import STAY, TIME, read_rows


def with_label(wide: pl.DataFrame, label: Label, hourly: Hourly, stays: pl.DataFrame) -> pl.DataFrame:
    """`wide` (`STAY`, `#hour`, ...) with the label's column.

    With a horizon: "yes" if the event comes in that many hours after the time of prediction; nothing if it came before;
    "no" if it comes later, or if there is none and the labels go on until the end of the horizon; else nothing, for
    nobody looked. Without: "yes" where any label of the stay is positive, else "no". A stay without labels has nothing.

    Raises:
        UserError: faults of the table; values that are neither positive nor negative.
    """
    rows = label.table or hourly.table
    if rows is None:
        raise ValueError(f"label {label.column!r} has no table")
    found = read_rows(rows, [label.label], stays, hourly.earliest).with_columns(as_code(label.label))
    check_codes(found, label, rows)
    positive = pl.col(label.label).is_in(list(label.positive))
    events = found.group_by(STAY).agg(
        (pl.col(TIME).filter(positive).min() + label.lead).alias("#event"),
        (pl.col(TIME).filter(pl.col(label.label).is_not_null()).max() + hourly.row_hours).alias("#until"),
    )
    wide = wide.join(events.collect(), on=STAY, how="left", maintain_order="left")
    event, until = pl.col("#event"), pl.col("#until")
    answer = pl.when(event.is_not_null()).then(pl.lit("yes")).when(until.is_not_null()).then(pl.lit("no"))
    if label.horizon is not None:
        end = pl.col("#hour") + label.horizon
        answer = (
            pl.when(event < pl.col("#hour"))
            .then(None)
            .when(event < end)
            .then(pl.lit("yes"))
            .when(event.is_not_null() | (until >= end))
            .then(pl.lit("no"))
        )
    return wide.with_columns(answer.alias(label.column)).drop("#event", "#until")


def as_code(column: str) -> pl.Expr:
    """Labels as text: `true`, `false`, whole numbers without ".0"."""
    return pl.col(column).cast(pl.String).str.to_lowercase().str.replace(r"\.0$", "")


def check_codes(found: pl.LazyFrame, label: Label, rows: Rows) -> None:
    known = pl.col(label.label).is_in([*label.positive, *label.negative])
    odd = found.select((~known).sum()).collect().item()
    if odd:
        raise UserError(
            f"{rows.path}: {odd} values of the label {label.label!r} are neither positive nor negative.",
            "List them in the label's positive or negative.",
        )
