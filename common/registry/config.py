"""A site's declaration of its registry: where the tables are, what each column means, what is never used.

`extends = "other.toml"` takes another file's values as a base, so that hospitals which share a registry
share its feature dictionary; tables merge key by key, lists are replaced.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from common.errors import UserError
from common.registry.cleaning.declared import Clean, Words
from common.registry.header import ROW
from common.registry.hourly_config import Hourly, Rows, with_hourly
from common.registry.meds_config import Meds
from common.registry.splits import Split
from common.registry.translation import Translate, with_dictionary
from common.strict import Strict, checked, read_toml
from common.study import SiteName


class Feature(Strict):
    """One column as the prompt shows it."""

    column: str
    name: str
    unit: str = ""
    section: str
    kind: Literal["category", "number", "date", "text"]
    ordinal: bool = False
    """A scale of ordered categories (age band, frailty): continuous for mutual information."""
    known: str = "baseline"
    """When the value becomes known, one of the registry's `times`. A question shows what is known by its own time."""
    variable: str = ""
    """Columns with the same variable are one quantity measured at different times; empty: the column itself. They
    share their statistics, and what gives one of them away is left out with all its times."""
    ask: bool = True
    values: dict[str, str] = {}
    """Raw category -> printed value. Values that are not listed stay as they are."""
    missing: tuple[str, ...] = ()
    """Raw values that mean "not recorded" in this column, besides `table.missing`."""
    clean: Clean = Clean()
    """What is repaired before the value is read."""

    @property
    def quantity(self) -> str:
        """The name under which the codebook has its statistics: the variable's, or the column's."""
        return self.variable or self.column

    @model_validator(mode="after")
    def cleaned(self) -> "Feature":
        self.clean.fits(self.column, self.kind, self.values)
        return self


class Outcome(Strict):
    """A later value that is asked for from what was known at a time of prediction."""

    column: str
    """A declared feature that becomes known after `at`."""
    question: str = Field(min_length=1)
    at: str = "baseline"
    """The time of prediction, one of `times`: everything known later is removed from the prompt."""
    task: Literal["outcome", "forecast"] = "outcome"
    values: dict[str, str] = {}
    """Printed value -> answer, to merge values ("dead" and "dependent" -> "yes"). Others stay as they are."""

    @model_validator(mode="after")
    def merged(self) -> "Outcome":
        if self.values and self.task == "forecast":
            raise ValueError("values belong to task = 'outcome'; a forecast asks for the value as it is: remove them")
        return self


class Table(Strict):
    source: Literal["csv", "parquet", "excel", "sql", "meds", "synthetic"]
    path: str = ""
    """File; `${NAME}` and `${NAME:-default}` are taken from the environment, relative paths from this file.
    For `sql` an SQLite database."""
    sheet: str = ""
    """The sheet of an Excel file; needed where there are several."""
    server: str = ""
    """Of `sql`, instead of `path`: `postgresql://user:${PASSWORD}@host:5432/database`. Filled in from the
    environment when the connection is made, so that a password stands neither in the file nor in this object."""
    query: str = ""
    """Of `sql`: one SELECT whose columns are the table's."""
    get: str = ""
    """One sentence that tells a user how to get the data."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """What separates the columns of a CSV file."""
    encoding: str = "utf-8"
    """Of the text in a CSV or SQLite file, by Python's names: `utf-16`, `cp1252` (Western Windows), `cp949` (Korean
    Windows)."""
    rows: int | None = Field(default=None, gt=0)
    """How many rows the export is known to have, before any filter; another number is refused. An interrupted copy
    that ends with a whole line is not found otherwise."""
    missing: tuple[str, ...] = ("", "NA")
    """Values that mean "not recorded", compared after spaces around a value are removed."""
    where: dict[str, tuple[str, ...]] = {}
    """Keep rows whose column has one of these values."""
    where_not: dict[str, tuple[str, ...]] = {}
    """Drop rows whose column has one of these values."""
    home: str = ""
    """A column such as the hospital. A patient belongs to the value of their first row; their rows with another value
    are dropped before any filter, so that filters by hospital never put one patient at two sites."""

    @property
    def place(self) -> str:
        """Where the table is, for messages: the path, or the server without user and password."""
        return re.sub(r"//[^/]*@", "//", self.server).partition("?")[0] or self.path

    @model_validator(mode="after")
    def source_and_place(self) -> "Table":
        if self.sheet and self.source != "excel":
            raise ValueError("sheet belongs to source = 'excel'; remove it or change the source")
        if (self.query or self.server) and self.source != "sql":
            raise ValueError("query and server belong to source = 'sql'; remove them or change the source")
        self.check_encoding()
        if self.source != "sql":
            return self
        if not self.query.strip():
            raise ValueError("source = 'sql' needs a query; give one SELECT statement")
        if bool(self.path) == bool(self.server):
            raise ValueError("source = 'sql' takes either path (SQLite) or server (PostgreSQL); give one of them")
        if self.server and not self.server.startswith(("postgresql://", "postgres://")):
            raise ValueError("server does not begin with postgresql://; only PostgreSQL servers are read")
        if written_password(self.server):
            raise ValueError("server holds a password; write ${NAME} there and set NAME in the environment")
        return self

    def check_encoding(self) -> None:
        if self.encoding == "utf-8":
            return
        if self.source not in ("csv", "sql") or self.server:
            raise ValueError("encoding belongs to CSV and SQLite files, all others say it themselves; remove it")
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(f"there is no encoding {self.encoding!r}; try 'utf-16', 'cp1252' or 'cp949'") from None


def written_password(server: str) -> bool:
    """Whether a password stands in the URL as it is, before `@` or as `password=`, and not as `${NAME}`."""
    found = re.search(r"//[^/@:]*:(?P<user>.*)@|[?&]password=(?P<option>[^&]*)", server)
    if found is None:
        return False
    return re.fullmatch(r"\$\{[A-Z0-9_]+\}", found["user"] or found["option"] or "") is None


class Synthetic(Strict):
    """Parameters of a synthetic sepsis hospital (common/registry/synthetic.py)."""

    patients: int = Field(default=600, gt=0)
    seed: int = Field(default=1, ge=0)
    severity: float = 0.0
    case_mix: Literal["mixed", "surgical", "medical", "urban"] = "mixed"
    calibration: float = Field(default=1.0, gt=0)
    missing: float = Field(default=0.05, ge=0, lt=0.9)


class RegistryConfig(Strict):
    site: SiteName
    title: str = ""
    table: Table
    synthetic: Synthetic | None = None
    meds: Meds | None = None
    hourly: Hourly | None = None
    """Measurements over time; `read_registry_config` adds the features and outcomes that it declares."""
    patient: str
    """The column that says which patient a row is about, or `#row`."""
    one_row_per_patient: bool = True
    times: tuple[str, ...] = Field(default=("baseline", "outcome"), min_length=1)
    """Moments at which values become known, the earliest first."""
    features: tuple[Feature, ...] = Field(min_length=2)
    outcomes: tuple[Outcome, ...] = ()
    words: Words = Words()
    translate: Translate = Translate()
    clean: dict[str, Clean] = {}
    """Column -> what this site repairs there, instead of the feature's own `clean`: for sites that share a
    dictionary of features and not the way of writing."""
    split: Split | None = None
    never: tuple[str, ...] = ()
    """Columns that are known and must not be used (identifiers, leaks); listed so that nobody wonders."""

    @model_validator(mode="after")
    def consistent(self) -> "RegistryConfig":
        columns = [f.column for f in self.features]
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"feature column {twice[0]!r} is declared twice; remove one")
        both = sorted(set(columns) & set(self.never))
        if both:
            raise ValueError(f"column {both[0]!r} is both a feature and in `never`; decide which")
        if self.patient in columns:
            raise ValueError(f"the patient column {self.patient!r} is declared as a feature; remove it there")
        if self.split is not None and self.split.column in columns:
            raise ValueError(f"the split's column {self.split.column!r} is declared as a feature; remove it there")
        if "patient" in columns:
            raise ValueError("a feature's column may not be called 'patient'; rename it in the table")
        if len(set(self.times)) < len(self.times):
            raise ValueError(f"times {list(self.times)} names a moment twice; remove one")
        for feature in self.features:
            if feature.known not in self.times:
                raise ValueError(
                    f"feature {feature.column!r} is known at {feature.known!r}, which is not among the times "
                    f"{list(self.times)}; add it there or correct known"
                )
        for outcome in self.outcomes:
            self.check_outcome(outcome)
        asked = [outcome.column for outcome in self.outcomes]
        again = sorted({c for c in asked if asked.count(c) > 1})
        if again:
            raise ValueError(f"two outcomes ask for the column {again[0]!r}; give each a column of its own")
        self.check_variables()
        labels = [(f.section, f.name) for f in self.features]
        same = sorted({x for x in labels if labels.count(x) > 1})
        if same:
            raise ValueError(f"section {same[0][0]!r} has two features named {same[0][1]!r}; rename one")
        if (self.table.source == "synthetic") != (self.synthetic is not None):
            raise ValueError("table.source = 'synthetic' and a [synthetic] table go together; give both or neither")
        if self.table.source not in ("synthetic", "sql") and not self.table.path:
            raise ValueError("table.path is empty; give the path of the registry's file")
        self.check_clean()
        self.check_hourly()
        if self.patient == ROW and not self.one_row_per_patient:
            raise ValueError("patient = '#row' means one row per patient; remove one_row_per_patient = false")
        return self

    def check_hourly(self) -> None:
        if (self.table.source == "meds") != (self.meds is not None):
            raise ValueError("table.source = 'meds' and a [meds] table go together; give both or neither")
        if self.hourly is None:
            if self.meds is not None:
                raise ValueError("events need an [hourly] table that says what becomes of them; add it")
            return
        if self.patient == ROW:
            raise ValueError("patient = '#row' cannot tell two stays of one patient; give the patient's column")
        if (self.hourly.table is None) != (self.meds is not None):
            raise ValueError("[hourly.table] is for all sources but meds, which gives the measurements itself")
        if self.meds is not None and self.hourly.labels:
            raise ValueError("labels need a table of measurements; source 'meds' has columns of the stays instead")

    def check_clean(self) -> None:
        features = {f.column: f for f in self.features}
        for column, clean in self.clean.items():
            if column not in features:
                raise ValueError(f"[clean] names {column!r}, which is no feature; correct it")
            clean.fits(column, features[column].kind, features[column].values)
        cleaned = [*(f.clean for f in self.features), *self.clean.values()]
        if any(clean.yes_no for clean in cleaned) and not (self.words.yes and self.words.no):
            raise ValueError("clean.yes_no needs the words; give a [words] table with the lists yes and no")

    def check_variables(self) -> None:
        first: dict[str, Feature] = {}
        for feature in (f for f in self.features if f.variable):
            other = first.setdefault(feature.variable, feature)
            if (other.kind, other.unit, other.ordinal) != (feature.kind, feature.unit, feature.ordinal):
                raise ValueError(
                    f"features {other.column!r} and {feature.column!r} are one variable, {feature.variable!r}, but of "
                    "another kind, unit or ordinal; make them alike or give them different variables"
                )
        for feature in self.features:
            if not feature.variable and feature.column in first:
                raise ValueError(
                    f"column {feature.column!r} has the name of a variable; rename the variable or make it its column"
                )
        moments = [(f.variable, f.section) for f in self.features if f.variable]
        twice = sorted({m for m in moments if moments.count(m) > 1})
        if twice:
            raise ValueError(
                f"variable {twice[0][0]!r} has two columns in section {twice[0][1]!r}; give each time its own section"
            )

    def check_outcome(self, outcome: Outcome) -> None:
        known = {f.column: f.known for f in self.features}
        printed = {f.column: set(f.values.values()) for f in self.features}
        if outcome.column not in known:
            raise ValueError(f"outcome {outcome.column!r} is not a declared feature; declare it among the features")
        if outcome.at not in self.times:
            raise ValueError(f"outcome {outcome.column!r}: no moment {outcome.at!r}; use one of {list(self.times)}")
        if self.times.index(known[outcome.column]) <= self.times.index(outcome.at):
            raise ValueError(
                f"outcome {outcome.column!r} is known at {known[outcome.column]!r}, not after its time of prediction "
                f"{outcome.at!r}; set the feature's known to a later time or predict earlier"
            )
        unknown = sorted(set(outcome.values) - printed[outcome.column]) if printed[outcome.column] else []
        if unknown:
            raise ValueError(
                f"outcome {outcome.column!r}: {unknown[0]!r} is not among the feature's printed values; correct it, or "
                "list it in the feature's values"
            )


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`; tables merge key by key, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def expand_environment(text: str, field: str, source: str) -> str:
    def one(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        value = os.environ.get(name) or default
        if value is None:
            raise UserError(f"{source}: {field} needs the environment variable {name}.", f"Set {name}.")
        return value

    return re.sub(r"\$\{(?P<name>[A-Z0-9_]+)(?::-(?P<default>[^}]*))?\}", one, text)


def read_values(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A TOML file on top of what it extends; `below` is the chain of files that led here.

    Raises:
        UserError: a file that cannot be read, or files that extend each other in a circle.
    """
    if path.resolve() in below:
        raise UserError(f"{path}: it extends itself through {below[-1].name}.", "Remove one of the two `extends`.")
    values = read_toml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: 'extends' is not text.", "Give it the name of one TOML file.")
    return merge(read_values(path.parent / base, (*below, path.resolve())), values)


def read_registry_config(path: Path, values: dict[str, Any] | None = None) -> RegistryConfig:
    """Read a site's registry declaration, with `table.path` absolute, its dictionary read and `clean` in the features.

    Raises:
        UserError: wrong key, type, value or combination, or an unset environment variable.
    """
    # The `[client]` table is the hospital's own (client/site.py); a simulation reads the same file without it.
    values = {key: value for key, value in (values or read_values(path)).items() if key != "client"}
    config = checked(RegistryConfig, with_hourly(values, str(path)), str(path))
    own = config.clean
    features = tuple(f.model_copy(update={"clean": own[f.column]}) if f.column in own else f for f in config.features)
    translate, table = config.translate, config.table
    if translate.file:
        translate = with_dictionary(translate, beside(path, translate.file, "translate.file"))
    if table.path:
        table = table.model_copy(update={"path": str(beside(path, table.path, "table.path"))})
    changes = {"features": features, "clean": {}, "translate": translate, "table": table}
    if config.hourly is not None:
        changes["hourly"] = placed(config.hourly, path)
    return config.model_copy(update=changes)


def placed(hourly: Hourly, path: Path) -> Hourly:
    """`hourly` with the paths of its tables absolute."""

    def absolute(rows: Rows | None) -> Rows | None:
        return rows and rows.model_copy(update={"path": str(beside(path, rows.path, "hourly: path"))})

    labels = tuple(label.model_copy(update={"table": absolute(label.table)}) for label in hourly.labels)
    return hourly.model_copy(update={"table": absolute(hourly.table), "labels": labels})


def beside(path: Path, named: str, field: str) -> Path:
    """The file that a site file names, relative to the site file."""
    place = Path(expand_environment(named, field, str(path)))
    return place if place.is_absolute() else (path.parent / place).resolve()
