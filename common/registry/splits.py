"""Who is for training and who for testing: decided patient by patient, by the registry or by nothing but a hash."""

import hashlib
from collections.abc import Iterable, Mapping

import polars as pl
from pydantic import Field, model_validator

from common.errors import UserError
from common.strict import Strict


class Split(Strict):
    """A split that the registry brings along, such as a challenge's. Patients are split by a hash without it."""

    column: str
    """No feature: what it says is not about the patient."""
    train: tuple[str, ...] = Field(min_length=1)
    """Values of the column that put a patient among those who are learned from."""
    test: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def apart(self) -> "Split":
        both = sorted(set(self.train) & set(self.test))
        if both:
            raise ValueError(f"{both[0]!r} means both train and test; remove one")
        return self


def position(patient: str, seed: int) -> float:
    """A number in [0, 1), uniform over patients, fixed by the seed and the patient's identifier alone."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_patients(
    patients: Iterable[str], seed: int, test_fraction: float, declared: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Split patients into `train` and `test`, each sorted, without duplicates.

    Args:
        declared: patient -> side, of those whose registry says so.

    A patient's side depends on (seed, identifier) only: not on the order, the other patients or the
    site, so it is the same at a hospital and in the pooled data, today and after new admissions. The
    share of test patients is therefore `test_fraction` on average, not exactly.
    """
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for patient in sorted(set(patients)):
        drawn = "test" if position(patient, seed) < test_fraction else "train"
        sides[(declared or {}).get(patient, drawn)].append(patient)
    return sides


def declared_sides(patients: pl.Series, column: pl.Series, split: Split, source: str) -> dict[str, str]:
    """Patient -> side, as the registry's own column says; both series have a value a row.

    Raises:
        UserError: a row that is on neither side, or a patient who is on both.
    """
    codes = {**dict.fromkeys(split.train, "train"), **dict.fromkeys(split.test, "test")}
    rows = pl.DataFrame({"patient": patients, "side": column.replace_strict(codes, default=None)})
    nowhere = rows["side"].null_count()
    if nowhere:
        raise UserError(
            f"{source}: the split's column {split.column!r} says neither train nor test in {nowhere} of {rows.height} "
            "rows.",
            "List all its values in split.train and split.test, or filter those rows out.",
        )
    apart = rows.unique()
    twice = apart.height - apart["patient"].n_unique()
    if twice:
        raise UserError(
            f"{source}: {twice} patients are in both train and test by the column {split.column!r}.",
            "Put every patient on one side, or remove [split]: patients are then split by a hash.",
        )
    return dict(apart.rows())
