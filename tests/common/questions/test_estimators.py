import polars as pl
import pytest

from common.questions.estimators import Agreement, compare
from common.registry.registry import Registry


def test_both_find_the_same_shortcuts_where_they_are_clear(clinic: Registry) -> None:
    """9 of 10 columns can be asked (a date cannot): 9 x 9 pairs; pressure and shock, and the lactates, both ways: 4."""
    found = compare(clinic, 0.5, 800, 1)
    assert (found.rows, found.pairs, found.both) == (800, 81, 4)
    assert found.disagreement == 0.0


def test_a_threshold_between_the_two_estimates_is_a_disagreement(clinic: Registry) -> None:
    """A copy of a continuous column: 20 bins hold at most ln 20 = 3.0 nats of it; neighbours see far more."""
    lactate = pl.col("pressure") + pl.int_range(pl.len()) / 10_000
    twins = Registry(
        "twins",
        tuple(f for f in clinic.features if f.column in ("lactate", "twin")),
        clinic.frame.select("patient", lactate.alias("lactate"), lactate.alias("twin")),
    )
    found = compare(twins, 3.2, 2000, 1)
    assert (found.pairs, found.neighbours_only, found.disagreement) == (2, 2, 1.0)
    assert found.furthest > 1.0


def test_the_share_is_of_all_pairs() -> None:
    """1 + 2 of 12."""
    found = Agreement(rows=9, pairs=12, both=4, binned_only=1, neighbours_only=2, furthest=0.1)
    assert found.disagreement == pytest.approx(0.25)
