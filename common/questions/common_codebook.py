"""One codebook for several sites, fitted from their summed counts and nothing else.

The rules are those of `codebook.py`. What differs is that numbers are known to four significant digits: two numbers
that share a cell count as its centre, for the support and for bins.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.codebook import (
    GRAINS,
    MOST_CATEGORIES,
    MOST_DECIMALS,
    PRINTED_EXACTLY,
    Codebook,
    Column,
    decimals_of_spread,
    grain_of,
    ranked,
    shortcuts,
    support,
)
from common.questions.counts import (
    CLOCK,
    DECIMALS,
    DIGITS,
    HIDDEN,
    MANY,
    ROWS,
    VALUE,
    digits,
    multiple,
    printed,
)
from common.questions.information import bins_for
from common.questions.joint import BUCKETS, Binning, Layout, pair_information
from common.questions.printing import print_units, to_units
from common.questions.variables import as_quantities
from common.registry.config import Feature
from common.study import Questions


class Counted:
    """The cells of one quantity: what -> cell -> count."""

    def __init__(self, cells: pl.DataFrame) -> None:
        self.what: dict[str, dict[str, int]] = {}
        for what, cell, count in cells.select("what", "cell", "count").iter_rows():
            self.what.setdefault(what, {})[cell] = count

    def of(self, what: str) -> dict[str, int]:
        return self.what.get(what, {})

    @property
    def many(self) -> bool:
        return MANY in self.what

    @property
    def folded(self) -> bool:
        """Whether a number stands in a cell of fewer digits than four."""
        return any(self.of(digits(n)) for n in range(1, DIGITS))

    def numbers(self) -> pl.DataFrame:
        """Cells as `number` and `count`, ascending."""
        return number_table([(float(cell), n) for d in range(1, DIGITS + 1) for cell, n in self.of(digits(d)).items()])

    def spread(self) -> pl.DataFrame:
        """`numbers`, with those of a cell of few digits spread evenly over the ten finer cells in it.

        A finer cell with a count of its own takes no part where another can: its numbers were not folded.
        """
        cells = {float(cell): n for cell, n in self.of(digits(DIGITS)).items()}
        rows = list(cells.items())
        for fewer in range(DIGITS - 1, 0, -1):
            for cell, count in sorted(self.of(digits(fewer)).items()):
                finer = finer_cells(cell, fewer)
                free = [number for number in finer if number not in cells] or finer
                each, over = divmod(count, len(free))
                rows += [(number, each + (place < over)) for place, number in enumerate(free)]
        return number_table([row for row in rows if row[1]])


def number_table(rows: list[tuple[float, int]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={"number": pl.Float64, "count": pl.Int64}, orient="row")
    return table.group_by("number").agg(pl.col("count").sum()).sort("number")


def finer_cells(cell: str, significant: int) -> list[float]:
    """The ten numbers of one digit more that are rounded to a cell; of 0 itself."""
    centre = float(cell)
    step = 10.0 ** (int(cell.partition("e")[2]) - significant)
    return [float(f"{centre + i * step:.{significant}e}") for i in range(-5, 5)] if centre else [0.0]


def by_quantity(cells: pl.DataFrame) -> defaultdict[str, Counted]:
    """Name -> its cells; nothing where a name has none."""
    found: defaultdict[str, Counted] = defaultdict(lambda: Counted(cells.clear()))
    found.update({str(key[0]): Counted(part) for key, part in cells.group_by("quantity")})
    return found


def fit_columns(cells: pl.DataFrame, features: Sequence[Feature]) -> dict[str, Column]:
    """Column statistics from counts (`counts.SCHEMA`), by quantity in the order of `features`."""
    counted = by_quantity(cells)
    return {q.column: fit_counted(counted[q.column], q) for q in as_quantities(features)}


def fit_counted(counted: Counted, feature: Feature) -> Column:
    if feature.kind == "number":
        return fit_number(counted, feature.column)
    if feature.kind == "date":
        return Column(feature.column, "date", maskable=False, decimals=int("time" in counted.of(CLOCK)))
    if counted.many:
        return Column(feature.column, "text", maskable=False)
    values, counts = ranked(pl.DataFrame(list(counted.of(VALUE).items()), schema=["value", "len"], orient="row"))
    return Column(feature.column, "category", len(values) > 1, values, counts)


def fit_number(counted: Counted, column: str) -> Column:
    """A number, or a category where at most 20 values are printed and every one of them is known."""
    table = counted.numbers()
    if table.is_empty():
        return Column(column, "number", maskable=False)
    decimals = decimals_to_print(counted, table)
    units = printed_units(table, decimals)
    crowded = units.height > MOST_CATEGORIES or (counted.folded and counted.many)
    apart = "apart" in counted.of(printed(decimals))
    if not crowded and apart:
        # Few cells, but one may hold several printed values: neither a list of categories nor a scale.
        return Column(column, "number", maskable=False, decimals=decimals)
    values, counts = ranked(units.select(print_units(pl.col("units"), decimals).alias("value"), "len"))
    if not crowded:
        return Column(column, "category", len(values) > 1, values, counts, decimals=decimals)
    values, counts = support(printed_units(counted.spread(), decimals), decimals)
    grain = grain_of(multiples(counted.of(multiple(decimals))))
    return Column(column, "number", len(values) > 1, values, counts, decimals=decimals, grain=grain, float_ratio=1.0)


def printed_units(table: pl.DataFrame, decimals: int) -> pl.DataFrame:
    """Distinct printed numbers as `codebook.unit_counts` has them."""
    return table.group_by(to_units(pl.col("number"), decimals).alias("units")).agg(pl.col("count").sum().alias("len"))


def multiples(counts: Mapping[str, int]) -> dict[int, float]:
    """Of each grain, the share of values other than 0 that are multiples, from their greatest common divisors."""
    found = {int(divisor): n for divisor, n in counts.items() if divisor != "0"}
    total = max(1, sum(found.values()))
    return {grain: sum(n for divisor, n in found.items() if divisor % grain == 0) / total for grain in GRAINS}


def decimals_to_print(counted: Counted, table: pl.DataFrame) -> int:
    """As `codebook.decimals_to_print`: 0 to 3."""
    fewest = counted.of(DECIMALS)
    total = sum(fewest.values())
    if table.height == 1:
        return 0 if set(fewest) == {"0"} else MOST_DECIMALS
    shown = 0
    for decimals in range(MOST_DECIMALS + 1):
        shown += fewest.get(str(decimals), 0)
        if shown >= PRINTED_EXACTLY * total:
            return decimals
    numbers, counts = table["number"].to_numpy(), table["count"].to_numpy()
    mean = np.average(numbers, weights=counts)
    return decimals_of_spread(float(np.average((numbers - mean) ** 2, weights=counts)) ** 0.5)


def layout_of(cells: pl.DataFrame, features: Sequence[Feature], columns: Mapping[str, Column]) -> Layout:
    """The classes on which the second exchange counts pairs."""
    counted = by_quantity(cells)
    bins = bins_for(counted[""].of(ROWS)[""], counted[""].of(HIDDEN)[""])
    binnings = [binning(q, columns[q.column], counted[q.column], bins) for q in as_quantities(features)]
    return Layout(binnings=tuple(binnings))


def binning(feature: Feature, column: Column, counted: Counted, bins: int) -> Binning:
    if feature.kind == "date" or column.kind == "number":
        return Binning(quantity=feature.column, cuts=cuts(counted.numbers(), bins))
    if feature.kind == "number":
        values = pl.DataFrame({"number": sorted(map(float, column.values))}).with_columns(count=pl.lit(1, pl.Int64))
        return Binning(quantity=feature.column, cuts=cuts(values, bins if feature.ordinal else values.height))
    if column.kind == "text":
        return Binning(quantity=feature.column, buckets=BUCKETS)
    scale = scale_of(counted) if feature.ordinal else None
    if scale is not None:
        return Binning(quantity=feature.column, cuts=cuts(scale, bins))
    return Binning(quantity=feature.column, values=tuple(sorted(column.values)))


def scale_of(counted: Counted) -> pl.DataFrame | None:
    """A scale's levels and counts where all levels are numbers: other levels have no order that we know."""
    levels = counted.of(VALUE)
    numbers = pl.Series(list(levels), dtype=pl.String).cast(pl.Float64, strict=False)
    if numbers.null_count() or not levels:
        return None
    return number_table(list(zip(numbers, levels.values(), strict=True)))


def cuts(table: pl.DataFrame, bins: int) -> tuple[float, ...]:
    """Cuts between neighbouring cells at the quantiles, at most `bins` - 1, ascending."""
    numbers, counts = table["number"].to_numpy(), table["count"].to_numpy()
    if len(numbers) < 2:
        return ()
    upto = np.cumsum(counts)
    first = np.searchsorted(upto, np.arange(1, bins) * upto[-1] / bins, side="right")
    first = np.unique(first[(first > 0) & (first < len(numbers))])
    return tuple(((numbers[first - 1] + numbers[first]) / 2).tolist())


def fit_from_counts(
    cells: pl.DataFrame, pairs: NDArray[np.int64], features: Sequence[Feature], spec: Questions
) -> Codebook:
    """The codebook of all sites' training patients together.

    Args:
        cells: summed counts of the first exchange (`counts.SCHEMA`).
        pairs: summed counts of the second, on `layout_of` these cells.
    """
    columns = fit_columns(cells, features)
    nats = pair_information(pairs, layout_of(cells, features, columns))
    return Codebook(columns, shortcuts(nats, columns, spec.mi_threshold), spec.mi_threshold)
