"""Questions of more patients than fit in memory: a slice of patients at a time, each a row group of one Parquet file.

A registry of 100 columns takes about 1 kB a patient, its questions about 200 kB.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from common.disk import named_disk_faults
from common.questions.building import SCHEMA
from common.registry.registry import PATIENT, Registry
from common.registry.stored import to_arrow

PATIENTS = 500
"""Of a slice. All questions of 500 patients with 100 columns are about 100 MB of text."""


REPEATED = ["site", "patient", "task", "feature", "section", "kind", "system"]
"""Columns that hold few values; looking for repeated prompts would only take time."""


def slices(registry: Registry, patients: int = PATIENTS) -> Iterator[Registry]:
    """The registry in parts of at most so many patients, in its order; a patient's rows are in one part."""
    starts = registry.frame[PATIENT].rle().struct.field("len").cum_sum().to_list()
    first = 0
    for last in [*starts[patients - 1 : -1 : patients], *starts[-1:]]:
        yield replace(registry, frame=registry.frame[first:last])
        first = last


def write_questions(parts: Iterable[pl.DataFrame], path: Path) -> int:
    """Write question frames one after the other as row groups; the file has its name once it is whole.

    Returns:
        how many questions were written.

    Raises:
        UserError: the disk is full, or this user may not write there.
    """
    written = 0
    partial = path.with_name(path.name + ".partial")
    with named_disk_faults(path):
        schema = to_arrow(SCHEMA.to_frame()).schema
        with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=REPEATED) as file:
            for part in parts:
                file.write_table(to_arrow(part))
                written += part.height
        os.replace(partial, path)
    return written
