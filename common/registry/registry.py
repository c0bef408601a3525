"""A site's registry in memory: from the declared table to one tidy frame with typed columns."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from common.errors import UserError
from common.registry.cleaning.cells import beside, cell, without
from common.registry.cleaning.declared import Clean
from common.registry.cleaning.parse import parse
from common.registry.config import Feature, Outcome, RegistryConfig
from common.registry.hourly import event_records, hourly_records
from common.registry.readers import as_strings, named_parse_faults, read_table
from common.registry.splits import declared_sides
from common.registry.synthetic import generate
from common.registry.translation import check_translated, translate_cells, translate_headers

PATIENT = "patient"
SPLIT = "#split"
TYPES: dict[str, type[pl.DataType]] = {
    "number": pl.Float64,
    "category": pl.String,
    "date": pl.Datetime,
    "text": pl.String,
}


@dataclass(frozen=True)
class LeftOut:
    """A declared feature that this site's data cannot use, and why."""

    column: str
    reason: str


@dataclass(frozen=True, eq=False)
class Registry:
    """`frame`: `patient` (text) and one column per feature in `features`, in that order, sorted by patient.

    Numbers are Float64, categories and texts text (as printed), dates Datetime; missing is null. A row is one record;
    a patient may have several. `times`: when values become known, earliest first; `outcomes`: what can be asked for.
    `sides`: patient -> train or test, where the registry itself says so.
    """

    site: str
    features: tuple[Feature, ...]
    frame: pl.DataFrame
    left_out: tuple[LeftOut, ...] = ()
    times: tuple[str, ...] = ("baseline", "outcome")
    outcomes: tuple[Outcome, ...] = ()
    sides: Mapping[str, str] = field(default_factory=dict)

    @property
    def about(self) -> "Registry":
        """As `StoredRegistry.about` (stored.py)."""
        return self

    @property
    def patients(self) -> list[str]:
        """Sorted, each once."""
        return self.frame[PATIENT].unique().sort().to_list()

    def of(self, patients: Collection[str]) -> "Registry":
        """The rows of these patients."""
        return replace(self, frame=self.frame.filter(pl.col(PATIENT).is_in(list(patients))))

    def parts(self) -> Iterator["Registry"]:
        """As `StoredRegistry.parts` (stored.py): what is in memory is one part."""
        yield self


def load_registry(config: RegistryConfig) -> Registry:
    """Read, filter, parse and check the table that a site declares.

    Raises:
        UserError: the file is missing, empty or not parseable; a declared column is missing; no row is left
            after the filter; a patient identifier is missing or stands twice; a number or date does not parse;
            fewer than two features can be used; a
            patient is on both sides of a declared split.
    """
    lazy, source = declared_rows(config)
    with named_parse_faults(source):
        rows = lazy.collect()
    check_rows(rows.get_column, config, source)
    columns = [parse(rows[f.column], f, source, config.words).alias(f.column) for f in config.features]
    left_out = [x for f, c in zip(config.features, columns, strict=True) if (x := unusable(f, c)) is not None]
    registry = described(pl.DataFrame([rows[PATIENT], *columns]), left_out, config, source)
    return replace(registry, sides=sides_in(rows.get_column, config, source))


def declared_rows(config: RegistryConfig) -> tuple[pl.LazyFrame, str]:
    """The rows of this site, not yet read: `patient` and the declared columns as text, missing values null.

    Returns:
        the rows, and what messages call the table.

    Raises:
        UserError: the source is missing or faulty, or lacks a declared column.
    """
    if config.synthetic is not None:
        source = f"site {config.site}"
        lazy = as_strings(generate(config.synthetic, config.site), source).lazy()
    else:
        source = config.table.place
        lazy = read_source(config, source)
    require_columns(lazy, config, source)
    return clean(lazy, config), source


def check_rows(column: Callable[[str], pl.Series], config: RegistryConfig, source: str) -> None:
    """Args: column: a column of `declared_rows`, by its name."""
    patients = column(PATIENT)
    if patients.is_empty():
        filtered = config.table.where or config.table.where_not
        raise UserError(
            f"{source}: no row is left for site {config.site!r}.",
            "Correct table.where and table.where_not." if filtered else "Export a table that has rows.",
        )
    check_patients(patients, config, source)
    if config.translate.other_values == "refuse":
        check_words(column, config, source)


def described(typed: pl.DataFrame, left_out: Sequence[LeftOut], config: RegistryConfig, source: str) -> Registry:
    """The site's registry with the rows of `typed` (`patient` and all declared features), but for its `sides`.

    Raises:
        UserError: fewer than two features can be used.
    """
    gone = {x.column for x in left_out}
    features = tuple(f for f in config.features if f.column not in gone)
    if len(features) < 2:
        raise UserError(
            f"{source}: fewer than two features hold more than one value.", "Declare features that vary in this table."
        )
    frame = typed.drop(gone).sort(PATIENT, maintain_order=True)
    outcomes = tuple(o for o in config.outcomes if o.column not in gone)
    return Registry(config.site, features, frame, tuple(left_out), config.times, outcomes)


def sides_in(column: Callable[[str], pl.Series], config: RegistryConfig, source: str) -> dict[str, str]:
    return declared_sides(column(PATIENT), column(SPLIT), config.split, source) if config.split else {}


def read_source(config: RegistryConfig, source: str) -> pl.LazyFrame:
    """The declared table as text, one row for each record, not yet filtered."""
    if config.meds is not None and config.hourly is not None:
        return event_records(config, config.meds, config.hourly)
    rows = translate_headers(read_table(config.table), config.translate, source)
    if config.hourly is None or config.hourly.table is None:
        return rows
    return hourly_records(rows, config, config.hourly, config.hourly.table, source)


def require_columns(lazy: pl.LazyFrame, config: RegistryConfig, source: str) -> None:
    present = set(lazy.collect_schema().names())
    needed = [config.patient, *(f.column for f in config.features), *config.table.where, *config.table.where_not]
    needed += [config.table.home] if config.table.home else []
    needed += [config.split.column] if config.split else []
    needed += [column for feature in config.features for column in beside(feature)]
    missing = sorted({column for column in needed if column not in present})
    if missing:
        names = ", ".join(repr(column) for column in missing)
        raise UserError(
            f"{source}: there is no column {names}.",
            "Correct the column in the site file (upper and lower case count), or remove it there.",
        )


def clean(lazy: pl.LazyFrame, config: RegistryConfig) -> pl.LazyFrame:
    """The rows of this site: `patient` and the declared columns as text, missing values null."""
    rows = lazy.with_columns(pl.all().str.strip_chars())
    rows = rows.with_columns(translate_cells(c, config.translate.words(c)) for c in rows.collect_schema().names())
    if config.table.home:
        home = pl.col(config.table.home)
        rows = rows.filter(home.eq_missing(home.first().over(config.patient)))
    for column, values in config.table.where.items():
        rows = rows.filter(pl.col(column).is_in(list(values)).fill_null(False))
    for column, values in config.table.where_not.items():
        rows = rows.filter(~pl.col(column).is_in(list(values)).fill_null(False))
    patient = without(config.patient, config.table.missing).alias(PATIENT)
    kept = [cell(f, config) for f in config.features]
    if config.split is not None:
        kept.append(pl.col(config.split.column).alias(SPLIT))
    return rows.select(patient, *kept)


def check_words(column: Callable[[str], pl.Series], config: RegistryConfig, source: str) -> None:
    """Categories hold translated or declared values; cells of several codes are checked against `values` alone."""
    for f in config.features:
        if f.kind == "category" and not f.clean.several:
            known = {*config.translate.words(f.column).values(), *f.values, *f.values.values()}
            known |= {*config.words.yes, *config.words.no, *f.clean.substitutes()}
            check_translated(column(f.column), known, source)


def check_patients(patients: pl.Series, config: RegistryConfig, source: str) -> None:
    """Args: patients: of all rows."""
    nobody = patients.null_count()
    if nobody:
        raise UserError(
            f"{source}: the patient column {config.patient!r} is empty in {nobody} of {patients.len()} rows.",
            "Fill it in, or filter those rows out with table.where.",
        )
    repeated = patients.len() - patients.n_unique()
    if config.one_row_per_patient and repeated:
        raise UserError(
            f"{source}: one row per patient was declared, but {repeated} rows repeat a value of {config.patient!r}.",
            "Keep one row per patient, or set one_row_per_patient = false.",
        )


def unusable(feature: Feature, column: pl.Series) -> LeftOut | None:
    """A constant has nothing to ask and tells nothing; the value itself is not named, it may be one patient's."""
    distinct = column.drop_nulls().n_unique()
    if distinct == 0:
        return LeftOut(feature.column, "all values are missing")
    return LeftOut(feature.column, "all values that are present are the same") if distinct == 1 else None


def concat_registries(registries: Sequence[Registry], site: str) -> Registry:
    """Several sites' registries as one, for pooled training.

    All must declare the same features. One that a site left out stays in use if any other site uses it, with
    missing values for the patients of that site. Raw codes (`Feature.values`) may differ, what is printed may not.

    Raises:
        UserError: features differ, or two sites use the same patient identifier.
    """
    features = merge_features({registry.site: registry.features for registry in registries})
    for registry in registries:
        declared = {f.column for f in registry.features} | {x.column for x in registry.left_out}
        for feature in features:
            if feature.column not in declared:
                raise UserError(
                    f"Site {registry.site!r} does not declare the feature {feature.column!r}, another site does.",
                    "Let the sites share one feature dictionary through `extends`.",
                )
    frame = pl.concat([widen(registry.frame, features) for registry in registries])
    patients = sum(registry.frame[PATIENT].n_unique() for registry in registries)
    if frame[PATIENT].n_unique() != patients:
        raise UserError(
            f"{patients - frame[PATIENT].n_unique()} patient identifiers stand at more than one of the sites.",
            "Put the hospital's code in front of each identifier, and no patient at two sites.",
        )
    used = {f.column for f in features}
    nowhere = {x.column: x for registry in registries for x in registry.left_out if x.column not in used}
    frame = frame.sort(PATIENT, maintain_order=True)
    outcomes = tuple({o.column: o for r in registries for o in r.outcomes}.values())
    sides = {patient: side for registry in registries for patient, side in registry.sides.items()}
    return Registry(site, tuple(features), frame, tuple(nowhere.values()), registries[0].times, outcomes, sides)


def merge_features(declared: Mapping[str, Sequence[Feature]]) -> list[Feature]:
    """The features that any site uses, in registry order.

    Args:
        declared: site -> the features that it uses.

    Raises:
        UserError: two sites declare a feature differently.
    """
    features: list[Feature] = []
    for site, used in declared.items():
        for place, feature in enumerate(used):
            known = next((f for f in features if f.column == feature.column), None)
            if known is None:
                features.insert(before(features, used[place + 1 :]), feature)
            elif printed(known) != printed(feature):
                raise UserError(
                    f"Site {site!r} declares the feature {feature.column!r} differently from the sites before it.",
                    "Let the sites share one feature dictionary through `extends`.",
                )
    return features


def before(features: list[Feature], following: Sequence[Feature]) -> int:
    """Where a feature goes so that it stands before the ones that follow it in its own registry."""
    columns = {f.column for f in following}
    return min((place for place, f in enumerate(features) if f.column in columns), default=len(features))


def printed(feature: Feature) -> Feature:
    return feature.model_copy(update={"values": {}, "missing": (), "clean": Clean()})


def widen(frame: pl.DataFrame, features: Sequence[Feature]) -> pl.DataFrame:
    """All of `features`' columns, null where the frame lacks them."""
    columns = [
        pl.col(f.column) if f.column in frame.columns else pl.lit(None, dtype=TYPES[f.kind]()).alias(f.column)
        for f in features
    ]
    return frame.select(PATIENT, *columns)


def shuffle_columns(registry: Registry, rows: int, seed: int) -> Registry:
    """Synthetic records with the registry's frequencies and nothing else.

    Every column is drawn by itself, with replacement, from its own observed values, missing ones included:
    each marginal distribution is kept (in expectation) and every relation between columns is destroyed.
    A column's draw depends on (seed, column) only.
    """
    width = len(str(rows))
    columns = [pl.Series(PATIENT, [f"{registry.site}-shuffled-{number:0{width}d}" for number in range(1, rows + 1)])]
    for feature in registry.features:
        digest = hashlib.sha256(f"{seed}:{feature.column}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(digest, "big")).integers(registry.frame.height, size=rows)
        columns.append(registry.frame[feature.column].gather(draw))
    return replace(registry, frame=pl.DataFrame(columns))
