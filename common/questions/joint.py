"""Counts of pairs of values on classes that all sites share: what a common codebook's shortcut filter is fitted from.

Why a second exchange: the information between two quantities needs bins that follow the data. Bins that nobody has to
agree on would have to be very fine to tell a pH of 7.3 from one of 7.4, and tables of pairs of such bins would be
almost empty. So cuts are chosen from the summed counts of the first exchange (`counts.py`), and the second counts pairs
on them: one vector of whole numbers whose length and order follow from the `Layout` alone, so that vectors add up over
sites, and a sum under encryption or with noise can take its place.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from common.questions.codebook import MOST_CATEGORIES
from common.questions.counts import as_numbers
from common.questions.information import MOST_BINS, pair_counts, pairs_in
from common.questions.variables import quantities, stacked
from common.registry.config import Feature
from common.strict import Strict

BUCKETS = 20
"""Of text, whose values do not leave a site: classes by a hash, coarse enough that one tells no text."""

Ints = NDArray[np.int64]


class Binning(Strict):
    """The classes of one quantity. Class 0 is missing; without values, cuts and buckets class 1 is everything else."""

    quantity: str
    values: tuple[str, ...] = Field(default=(), max_length=MOST_CATEGORIES)
    """Classes 1, 2 ...; values that are not listed share the class after them."""
    cuts: tuple[float, ...] = Field(default=(), max_length=max(MOST_BINS, MOST_CATEGORIES) - 1)
    """Lower bounds of classes 2, 3 ..."""
    buckets: int = Field(default=0, ge=0, le=BUCKETS)

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if sum(map(bool, (self.values, self.cuts, self.buckets))) > 1:
            raise ValueError("values, cuts and buckets are three ways to class a quantity; give one")
        if list(self.cuts) != sorted(set(self.cuts)) or len(set(self.values)) < len(self.values):
            raise ValueError("values and cuts are distinct, and cuts ascend; correct them")
        return self

    @property
    def size(self) -> int:
        """Number of classes."""
        if self.values:
            return len(self.values) + 2
        return (self.buckets or len(self.cuts) + 1) + 1


class Layout(Strict):
    """Which class pairs the vector counts: those of every two quantities, in this order."""

    binnings: tuple[Binning, ...]

    @property
    def sizes(self) -> list[int]:
        return [binning.size for binning in self.binnings]

    @property
    def pairs(self) -> NDArray[np.bool_]:
        """Of the table of all classes by all classes what is counted: an earlier quantity's by a later's."""
        column = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return column[:, None] < column[None, :]


def codes_of(column: pl.Series, binning: Binning) -> Ints:
    """Class of each row, shape (n,)."""
    codes = np.zeros(column.len(), dtype=np.int64)
    present = column.is_not_null().to_numpy()
    held = column.drop_nulls()
    if binning.values:
        place = {value: i for i, value in enumerate(binning.values, start=1)}
        codes[present] = [place.get(value, len(place) + 1) for value in held]
    elif binning.cuts:
        codes[present] = np.searchsorted(np.array(binning.cuts), as_numbers(held), side="right") + 1
    elif binning.buckets:
        codes[present] = [bucket(value, binning.buckets) + 1 for value in held]
    else:
        codes[present] = 1
    return codes


def bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % buckets


def count_pairs(frame: pl.DataFrame, features: Sequence[Feature], layout: Layout) -> pl.DataFrame:
    """How many rows stand in each pair of classes, and how many patients.

    As the codebook has it (variables.py): two quantities of one column over the records, others over records and times.

    Args:
        frame: `patient` and the features' columns.

    Returns:
        `count` and `patients`, one row for each pair in the order of the vector.
    """
    alone = {name for name, measured in quantities(features).items() if not measured[0].variable}
    rows = stacked(frame, features)
    times = rows.height // max(1, frame.height)
    everybody = pl.concat([frame["patient"]] * max(1, times))
    counts, patients = pair_tables(rows, everybody, layout)
    if len(alone) < len(quantities(features)):
        both = np.repeat([b.quantity in alone for b in layout.binnings], layout.sizes)
        once = both[:, None] & both[None, :]
        records = pair_tables(frame, frame["patient"], layout)
        counts, patients = np.where(once, records[0], counts), np.where(once, records[1], patients)
    return pl.DataFrame({"count": counts[layout.pairs], "patients": patients[layout.pairs]})


def pair_tables(rows: pl.DataFrame, patients_of: pl.Series, layout: Layout) -> tuple[Ints, Ints]:
    """Counts of rows and of patients, all classes by all classes; a quantity not in `rows` is missing everywhere."""
    missing = np.zeros(rows.height, dtype=np.int64)
    codes = [codes_of(rows[b.quantity], b) if b.quantity in rows.columns else missing for b in layout.binnings]
    counts = pair_counts(codes, layout.sizes).astype(np.int64)
    patient = patients_of.rank("dense").to_numpy().astype(np.int64)
    if patients_of.n_unique() == rows.height:
        return counts, counts
    starts = np.concatenate([[0], np.cumsum(layout.sizes)])
    patients = np.zeros_like(counts)
    for i, j in combinations(range(len(codes)), 2):
        shape = layout.sizes[i], layout.sizes[j]
        cell = np.ravel_multi_index((codes[i], codes[j]), shape)
        distinct = np.unique(patient * (shape[0] * shape[1]) + cell) % (shape[0] * shape[1])
        block = np.bincount(distinct, minlength=shape[0] * shape[1]).reshape(shape)
        patients[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = block
    return counts, patients


def pair_information(counts: Ints, layout: Layout) -> NDArray[np.float64]:
    """`[target, other]` in nats, in the order of the layout, from `count_pairs` of one site or the sum of several."""
    table = np.zeros((sum(layout.sizes), sum(layout.sizes)))
    table[layout.pairs] = counts
    return pairs_in(table + table.T, layout.sizes)
