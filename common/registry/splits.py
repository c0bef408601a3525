"""Who is for training and who is for testing: decided patient by patient, by nothing but a hash."""

import hashlib
from collections.abc import Iterable


def position(patient: str, seed: int) -> float:
    """A number in [0, 1), uniform over patients, fixed by the seed and the patient's identifier alone."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_patients(patients: Iterable[str], seed: int, test_fraction: float) -> dict[str, list[str]]:
    """Split patients into `train` and `test`, each sorted, without duplicates.

    A patient's side depends on (seed, identifier) only: not on the order, the other patients or the
    site, so it is the same at a hospital and in the pooled data, today and after new admissions. The
    share of test patients is therefore `test_fraction` on average, not exactly.
    """
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for patient in sorted(set(patients)):
        sides["test" if position(patient, seed) < test_fraction else "train"].append(patient)
    return sides
