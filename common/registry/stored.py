"""A registry on disk, for tables larger than memory: what `load_registry` gives, a part of the patients at a time.

The table is read twice, and never held. First batch by batch into a Parquet file of cleaned text, from which every
column is read by itself and checked whole: so counts in messages, and what is left out, are those of the table in
memory. Then batch by batch into typed Parquet files, each with the rows of patients that follow one another in sorted
order, so that each part can be sorted by itself.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from common.disk import named_disk_faults
from common.registry.cleaning.parse import parse
from common.registry.config import Feature, RegistryConfig
from common.registry.readers import named_parse_faults
from common.registry.registry import (
    PATIENT,
    TYPES,
    Registry,
    check_rows,
    declared_rows,
    described,
    sides_in,
    unusable,
)

ROWS = 10_000
"""Read at a time. 10,000 rows of 100 columns are about 30 MB of text."""
PATIENTS = 10_000
"""Of a part."""


@dataclass(frozen=True, eq=False)
class StoredRegistry:
    """`about`: the registry without a row; `patients`: sorted, each once; `files`: their rows, in that order."""

    about: Registry
    patients: list[str]
    files: tuple[Path, ...]

    def parts(self) -> Iterator[Registry]:
        """The registry part by part, sorted by patient; a patient's rows are in one part."""
        for file in self.files:
            yield replace(self.about, frame=pl.read_parquet(file).sort(PATIENT, maintain_order=True))

    def of(self, patients: Collection[str]) -> Registry:
        """The rows of these patients, in memory."""
        return replace(self.about, frame=pl.concat(part.of(patients).frame for part in self.parts()))


@contextmanager
def stored_registry(config: RegistryConfig, near: Path) -> Iterator[StoredRegistry]:
    """The declared table in a folder under `near` that is gone afterwards.

    Raises:
        UserError: as `load_registry`; the disk is full, or this user may not write there.
    """
    with named_disk_faults(near):
        near.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=near, prefix="registry-") as folder:
            yield store(config, Path(folder))


def store(config: RegistryConfig, folder: Path, rows: int = ROWS, patients: int = PATIENTS) -> StoredRegistry:
    """Args: rows: read at a time; patients: of a part. Neither changes what is stored but for its division."""
    lazy, source = declared_rows(config)
    text = folder / "text.parquet"
    with named_parse_faults(source):
        lazy.sink_parquet(text, row_group_size=rows)

    def column(name: str) -> pl.Series:
        return pl.read_parquet(text, columns=[name]).to_series()

    check_rows(column, config, source)
    columns = ((f, parse(column(f.column), f, source, config.words)) for f in config.features)
    left_out = [x for f, c in columns if (x := unusable(f, c)) is not None]
    schema = pl.Schema({PATIENT: pl.String(), **{f.column: TYPES[f.kind]() for f in config.features}})
    about = described(schema.to_frame(), left_out, config, source)
    about = replace(about, sides=sides_in(column, config, source))
    everyone = column(PATIENT).unique().sort().to_list()
    typed = (typed_rows(batch, about.features, config, source) for batch in batches(text, rows))
    files = divide(typed, everyone[patients::patients], about.frame.schema, folder)
    text.unlink()
    return StoredRegistry(about, everyone, files)


def digest(registry: StoredRegistry) -> str:
    """SHA-256 of all that questions are built from: the rows, and how the site declares them. The order in which the
    source has the patients is no part of it."""
    about = registry.about
    declared = [part.model_dump(mode="json", exclude_defaults=True) for part in (*about.features, *about.outcomes)]
    total = hashlib.sha256(json.dumps([declared, about.times, sorted(about.sides.items())]).encode())
    for part in registry.parts():
        total.update(part.frame.write_csv().encode())
    return total.hexdigest()


def batches(text: Path, rows: int) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(text) as file:
        for batch in file.iter_batches(rows):
            yield pl.DataFrame(batch)


def typed_rows(text: pl.DataFrame, features: Sequence[Feature], config: RegistryConfig, source: str) -> pl.DataFrame:
    columns = [parse(text[f.column], f, source, config.words).alias(f.column) for f in features]
    return pl.DataFrame([text[PATIENT], *columns])


def divide(typed: Iterator[pl.DataFrame], firsts: list[str], schema: pl.Schema, folder: Path) -> tuple[Path, ...]:
    """One file for each range of patients, its rows in the order in which they come.

    Args:
        firsts: the first patient of every range but the first, sorted.
    """
    files = tuple(folder / f"{place}.parquet" for place in range(len(firsts) + 1))
    shape = to_arrow(schema.to_frame()).schema
    with ExitStack() as stack:
        writers = [stack.enter_context(pq.ParquetWriter(file, shape, compression="zstd")) for file in files]
        for batch in typed:
            place = pl.Series([bisect_right(firsts, patient) for patient in batch[PATIENT]])
            for (number,), rows in batch.group_by(place.alias("part"), maintain_order=True):
                writers[int(number)].write_table(to_arrow(rows.select(schema.names())))
    return files


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
