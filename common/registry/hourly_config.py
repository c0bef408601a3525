"""The `[hourly]` table of a site file: measurements over time, and what they become: ordinary features and outcomes.

A record is a stay at a time of prediction. Each variable is summed up in windows before that time, so a variable
becomes one feature for each window; what is asked for (a later window, a label) is a feature that becomes known later.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from common.strict import Strict, checked
from common.study import Positive

HOURS = {"hours": 1.0, "minutes": 1 / 60, "seconds": 1 / 3600, "days": 24.0}
RULES = {"last": "last", "mean": "mean", "min": "lowest", "max": "highest", "sum": "total"}
LATER = "outcome"
"""When targets and labels become known; the windows are known at `baseline`."""


class Code(Strict):
    """A code of an event table whose values are this variable: value x `factor` + `offset` in the variable's unit."""

    code: str = Field(min_length=1)
    factor: float = 1.0
    offset: float = 0.0


class Variable(Strict):
    """One column of numbers of the measurements table."""

    column: str = Field(min_length=1)
    name: str
    unit: str = ""
    aggregate: Literal["last", "mean", "min", "max", "sum"] = "mean"
    """What stands for the values of one window."""
    decimals: int | None = Field(default=None, ge=0)
    """To which that is rounded; a mean has more digits than anyone measured."""
    kind: Literal["number", "category"] = "number"
    values: dict[str, str] = {}
    """Of a category: code -> printed value. Codes are numbers."""
    ordinal: bool = False
    plausible: tuple[float, float] | None = None
    """Values outside are taken as not measured."""
    typical: tuple[float, float] | None = None
    """The column's median must lie between these, else the table is refused: it is in another unit, or normalised."""
    codes: tuple[Code, ...] = ()
    """Of source "meds": the codes whose values this variable takes."""

    @model_validator(mode="after")
    def possible(self) -> "Variable":
        for low, high in (pair for pair in (self.plausible, self.typical) if pair):
            if low >= high:
                raise ValueError(f"{self.column!r}: {low} is not below {high}; correct plausible or typical")
        if self.kind == "category" and (not self.values or self.aggregate in ("mean", "sum")):
            raise ValueError(f"{self.column!r} is a category: give its values, and aggregate = 'last', 'min' or 'max'")
        return self


class Rows(Strict):
    """A table with one row for each stay and time."""

    source: Literal["csv", "parquet"] = "parquet"
    path: str = Field(min_length=1)
    get: str = ""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    stay: str
    """The column that says which stay a row is about."""
    time: str
    """A length of time, a number of `time_unit`, or a date with time."""
    time_unit: Literal["hours", "minutes", "seconds", "days"] = "hours"
    start: str = ""
    """A column of the stays' table that `time` counts from; empty: `time` counts from the stay's start already."""
    missing: tuple[str, ...] = ("", "NA")


class Label(Strict):
    """Whether an event comes, from a table of labels by the hour; printed yes and no."""

    column: str
    """The name of the feature that it becomes."""
    name: str
    question: str = Field(min_length=1)
    label: str
    """The column of the labels."""
    table: Rows | None = None
    """Where the labels are; with the measurements unless given."""
    positive: tuple[str, ...] = ("true", "1")
    negative: tuple[str, ...] = ("false", "0")
    lead: float = Field(default=0.0, ge=0)
    """Hours by which the first positive label stands before the event. Labels made for early warning have one."""
    horizon: float | None = Field(default=None, gt=0)
    """The event counts when it comes in this many hours after the time of prediction; a stay that had it before is
    not asked, nor is one without it whose labels end earlier. None: yes where any label of the stay is positive."""

    @model_validator(mode="after")
    def possible(self) -> "Label":
        both = sorted(set(self.positive) & set(self.negative))
        if both:
            raise ValueError(f"label {self.column!r}: {both[0]!r} is positive and negative; remove one")
        return self


class Forecast(Strict):
    """What a variable will be later."""

    ahead: float = Field(default=24.0, gt=0)
    """Hours from the time of prediction to the end of the window that is asked for."""
    window: Positive | None = None
    """Its width in hours; that of the windows unless given."""
    variables: tuple[str, ...] = ()
    """Columns of the variables that are asked; all unless given."""


class Hourly(Strict):
    stay: str
    """The column of the stays' table (`[table]`) that identifies a stay."""
    table: Rows | None = None
    """The measurements. Not given for source "meds". Where it is the file of `[table]` itself, a stay's first row there
    gives what does not change."""
    row_hours: float = Field(default=1.0, ge=0)
    """A row's values were measured from its time until so many hours later: it is known when that time is over."""
    earliest: float = 0.0
    """No row is from before this hour."""
    predict_at: tuple[float, ...] = (24.0,)
    """Times of prediction, in hours. Each stay that is still observed then gives a record."""
    window: Positive = 4
    """Width of a window in hours."""
    windows: Positive = 6
    """How many windows before the time of prediction are shown."""
    section: str = "Hours {start} to {end}"
    """Heading of a window. `{start}` and `{end}` are hours: of the stay, or before the time of prediction where there
    are several of those. `{start:+d}` prints a sign."""
    variables: tuple[Variable, ...] = Field(min_length=1)
    forecast: Forecast | None = None
    labels: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def possible(self) -> "Hourly":
        columns = [v.column for v in self.variables]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"variable {twice[0]!r} is declared twice; remove one")
        if not self.predict_at or len(set(self.predict_at)) < len(self.predict_at):
            raise ValueError("predict_at is empty or names a time twice; give each time once")
        try:
            headings = [self.heading(*hours) for hours in self.shown]
        except (KeyError, IndexError, ValueError):
            raise ValueError("section is not a text with {start} and {end}; correct it") from None
        if len(set(headings)) < len(headings):
            raise ValueError("section is the same for two windows; put {start} or {end} into it")
        if self.forecast is None:
            return self
        unknown = sorted(set(self.forecast.variables) - set(columns))
        if unknown:
            raise ValueError(f"forecast names {unknown[0]!r}, which is no variable; correct it")
        if self.forecast.ahead < (self.forecast.window or self.window):
            raise ValueError("forecast.ahead is less than its window, which would be shown in part; raise ahead")
        return self

    @property
    def shown(self) -> list[tuple[int, int]]:
        """(start, end) of the windows, in hours from the time of prediction, the earliest first."""
        return [(-(n + 1) * self.window, -n * self.window) for n in reversed(range(self.windows))]

    @property
    def target(self) -> tuple[float, float]:
        """(start, end) of the window that forecasts ask for, in hours from the time of prediction."""
        forecast = self.forecast or Forecast()
        return forecast.ahead - (forecast.window or self.window), forecast.ahead

    @property
    def asked(self) -> list[Variable]:
        """The variables that forecasts ask for."""
        if self.forecast is None:
            return []
        return [v for v in self.variables if not self.forecast.variables or v.column in self.forecast.variables]

    def heading(self, start: float, end: float) -> str:
        origin = self.predict_at[0] if len(self.predict_at) == 1 else 0.0
        return self.section.format(start=number(origin + start), end=number(origin + end))

    def features(self) -> list[dict[str, Any]]:
        """One feature for each variable and window, then the targets and the labels."""
        windows = [
            feature(v, at(v, start), self.heading(start, end)) for start, end in self.shown for v in self.variables
        ]
        later = {"known": LATER, "ask": False}
        start, end = self.target
        targets = [feature(v, at(v, start), self.heading(start, end), **later) for v in self.asked]
        labels = [
            {"column": x.column, "name": x.name, "section": "Outcome", "kind": "category", **later} for x in self.labels
        ]
        return [*windows, *targets, *labels]

    def outcomes(self) -> list[dict[str, Any]]:
        """A question for each target and label."""
        start, end = (number(hours) for hours in self.target)
        forecasts = []
        for variable in self.asked:
            what = f"{variable.name} ({variable.unit})" if variable.unit else variable.name
            rule = RULES[variable.aggregate]
            question = f"What will {what} be {start} to {end} h from now ({rule} of what is measured)?"
            forecasts.append({"column": at(variable, start), "question": question, "task": "forecast"})
        return [*forecasts, *({"column": x.column, "question": x.question} for x in self.labels)]


def number(hours: float) -> int | float:
    return int(hours) if hours == int(hours) else hours


def at(variable: Variable, start: float) -> str:
    """The column of a variable in the window that starts so many hours from the time of prediction."""
    return f"{variable.column} @{number(start):+}h"


def feature(variable: Variable, column: str, section: str, **more: Any) -> dict[str, Any]:
    return {
        "column": column,
        "variable": variable.column,
        "name": variable.name,
        "unit": variable.unit,
        "section": section,
        "kind": variable.kind,
        "values": variable.values,
        "ordinal": variable.ordinal,
        **more,
    }


def with_hourly(values: dict[str, Any], source: str) -> dict[str, Any]:
    """A site file's values with the features and outcomes that its `[hourly]` table declares.

    Raises:
        UserError: the table has a wrong key, type, value or combination.
    """
    if "hourly" not in values:
        return values
    hourly = checked(Hourly, values["hourly"], f"{source} [hourly]")
    return {
        **values,
        "features": [*values.get("features", []), *hourly.features()],
        "outcomes": [*values.get("outcomes", []), *hourly.outcomes()],
    }
