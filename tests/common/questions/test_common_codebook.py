"""The codebook from counts is the one that the pooled rows give, where counts hold nothing back."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.questions.building import build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.questions.common_codebook import finer_cells, fit_columns, fit_from_counts, layout_of
from common.questions.counts import add, count_values
from common.questions.joint import count_pairs
from common.registry.config import Feature, read_registry_config
from common.registry.registry import Registry, concat_registries, load_registry, widen
from common.study import Questions

CONFIGS = Path(__file__).parents[3] / "site_configs"
SYNTHETIC = [CONFIGS / "synthetic" / f"synthetic-{name}.toml" for name in ("north", "south", "east", "west")]
IST = [CONFIGS / "ist" / f"ist-{name}.toml" for name in ("argentina", "australia", "norway", "poland", "switzerland")]


def federated(
    registries: list[Registry], features: tuple[Feature, ...], spec: Questions, minimum: int = 1
) -> tuple[pl.DataFrame, Codebook]:
    """The summed counts of the first exchange and the codebook; cells under the minimum are left out as at the door."""
    tables = [count_values(r.frame, r.features, minimum) for r in registries]
    cells = add(table.filter(pl.col("patients") >= minimum) for table in tables)
    layout = layout_of(cells, features, fit_columns(cells, features))
    pairs = np.zeros(int(layout.pairs.sum()), dtype=np.int64)
    for registry in registries:
        found = count_pairs(widen(registry.frame, list(features)), features, layout)
        pairs += np.where(found["patients"] >= minimum, found["count"], 0)
    return cells, fit_from_counts(cells, pairs, features, spec)


@pytest.mark.parametrize("paths", [SYNTHETIC, IST], ids=["synthetic", "ist"])
def test_sites_that_count_ask_what_the_pooled_rows_ask(paths: list[Path]) -> None:
    configs = [read_registry_config(path) for path in paths]
    if any(c.table.path and not Path(c.table.path).exists() for c in configs):
        pytest.skip("the IST table is not here")
    registries = [load_registry(config) for config in configs]
    pooled = concat_registries(registries, "pooled")
    spec = Questions()
    cells, ours = federated(registries, pooled.features, spec)
    rows, theirs = federated([pooled], pooled.features, spec)
    assert cells.equals(rows) and ours == theirs
    # No count is rounded for any column here, so the codebook from rows is the same too.
    assert ours == fit_codebook(pooled.frame, pooled.features, spec, seed=1)
    patients = pooled.frame["patient"].unique().sort().head(100).to_list()
    asked = [build_questions(pooled, patients, book, spec, 1, None) for book in (ours, theirs)]
    assert asked[0].height > 500 and asked[0].equals(asked[1])


def one_number(values: np.ndarray) -> Registry:
    frame = pl.DataFrame({"patient": [f"p{i:05d}" for i in range(len(values))], "x": values, "y": values % 2 < 1})
    features = (
        Feature(column="x", name="X", section="S", kind="number"),
        Feature(column="y", name="Y", section="S", kind="category"),
    )
    return Registry("one", features, frame.with_columns(pl.col("y").cast(pl.String)))


def test_what_sites_hold_back_moves_a_distribution_little() -> None:
    values = np.random.default_rng(2).normal(140, 20, 4000).round()
    registry = one_number(values)
    found = federated([registry], registry.features, Questions(), minimum=10)[1].columns["x"]
    assert (found.kind, found.decimals, found.grain) == ("number", 0, 1)
    seen = np.repeat([float(v) for v in found.values], found.counts)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert abs(np.quantile(seen, quantile) - np.quantile(values, quantile)) <= 2


def test_few_values_that_are_not_known_exactly_are_shown_and_not_asked() -> None:
    registry = one_number(np.repeat([100001.0, 100002.0, 100003.0], 50))
    found = federated([registry], registry.features, Questions())[1].columns["x"]
    assert (found.kind, found.maskable) == ("number", False)


def test_a_scale_with_rare_levels_stays_a_scale() -> None:
    registry = one_number(np.repeat([3.0, 4.0, 13.0, 14.0, 15.0], [3, 4, 40, 50, 60]))
    found = federated([registry], registry.features, Questions(), minimum=10)[1].columns["x"]
    assert found.kind == "category" and set(found.values) == {"15", "14", "13"}


def test_a_shortcut_is_found_in_what_is_left() -> None:
    registry = one_number(np.random.default_rng(2).integers(0, 40, 4000).astype(float))
    book = federated([registry], registry.features, Questions(mi_threshold=0.3), minimum=10)[1]
    assert book.columns["x"].kind == "number" and book.excluded == {}
    low = registry.frame.with_columns(y=(pl.col("x") < 20).cast(pl.String))
    told = Registry("told", registry.features, low)
    assert federated([told], told.features, Questions(mi_threshold=0.3), minimum=10)[1].excluded == {
        "x": ("y",),
        "y": ("x",),
    }


@pytest.mark.parametrize(("cell", "digits"), [("5e+01", 1), ("1.2e-01", 2), ("-3.45e+02", 3)])
def test_finer_cells_are_rounded_to_their_own(cell: str, digits: int) -> None:
    finer = finer_cells(cell, digits)
    assert len(set(finer)) == 10
    assert {f"{number:.{digits - 1}e}" for number in finer[1:]} == {cell}
