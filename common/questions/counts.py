"""What a codebook common to several sites is fitted from: whole numbers that add up over sites.

A table of cells: `quantity` (a column, or all columns of a variable), `what` is counted, `cell`, `count`.

| what | cell | of |
|---|---|---|
| `rows`, `hidden` | - | the table: records; the largest count that is held back, see `minimum` |
| `value` | a printed value | categories with at most 20 values |
| `many` | - | a column with more than 20 values, 1 however many sites say so |
| `4 digits` ... `1 digits` | a number rounded to so many significant digits | numbers, days since 1970 of dates |
| `decimals` | fewest decimals that show the number exactly, or `more` | numbers |
| `multiple, D decimals` | greatest common divisor of 1000 and the number in its D-th decimal; 0 of 0 | numbers |
| `printed, D decimals` | do four digits print the number like all its digits? `alike`, `apart` | numbers |
| `clock` | `day`, `time` | dates |

Why rounding to significant digits: bins must be the same at every site and no range is agreed beforehand. Like the
logarithmic bins of DDSketch (Masson, Rim and Lee, VLDB 2019) these have a bounded relative width (0.1 % to 0.01 %),
but most clinical values have at most four digits, so that a cell is the value itself and prints as such. Questions
whose answer rounding would blur (how many decimals? noted in tens?) are counted for themselves, each as classes that
exclude one another, so that no count is the rest of two others within one question.

With minimum m, a number in a cell with fewer than m patients is counted in a cell of one digit fewer, and so on; what
then still stands with fewer than m patients is for the door to hold back (client/egress.py). With m = 1 nothing is
folded or held back and counts are additive exactly: those of several sites together are those of their pooled rows.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.questions.codebook import GRAINS, MOST_CATEGORIES, MOST_DECIMALS, shown_exactly
from common.questions.variables import quantities
from common.registry.config import Feature

KEY = ("quantity", "what", "cell")
SCHEMA = pl.Schema({**dict.fromkeys(KEY, pl.String()), "count": pl.Int64()})
ROWS, HIDDEN, VALUE, MANY, DECIMALS, CLOCK = "rows", "hidden", "value", "many", "decimals", "clock"
DIGITS = 4
COARSEST = max(GRAINS)
"""Every grain divides it."""

Floats = NDArray[np.float64]


def digits(number: int) -> str:
    return f"{number} digits"


def multiple(decimals: int) -> str:
    return f"multiple, {decimals} decimals"


def printed(decimals: int) -> str:
    return f"printed, {decimals} decimals"


def count_values(frame: pl.DataFrame, features: Sequence[Feature], minimum: int) -> pl.DataFrame:
    """Count the rows of a site's training patients.

    Args:
        frame: a registry's frame; minimum: patients behind a cell, so that the cell may leave.

    Returns:
        `SCHEMA` and `patients`, how many stand behind each cell; sorted.
    """
    everybody = frame["patient"].n_unique()
    whole = [("", ROWS, "", frame.height), ("", HIDDEN, "", minimum - 1)]
    parts = [pl.DataFrame(whole, schema=SCHEMA, orient="row").with_columns(patients=pl.lit(everybody, pl.Int64))]
    for name, group in quantities(features).items():
        long = pl.concat([frame.select("patient", pl.col(f.column).alias("value")) for f in group]).drop_nulls()
        counted = count_quantity(long, group[0].kind, minimum)
        parts += [part.with_columns(pl.lit(name).alias("quantity")) for part in counted]
    cells = pl.concat(parts, how="diagonal")
    # Whether there are many values is told of all the site's patients.
    return (
        settle(cells.select(SCHEMA.names()))
        .join(cells.select(*KEY, "patients"), on=KEY, how="left")
        .with_columns(pl.col("patients").fill_null(everybody))
    )


def count_quantity(long: pl.DataFrame, kind: str, minimum: int) -> list[pl.DataFrame]:
    """Cells (`what`, `cell`, `count`, `patients`) of one quantity; `long` has `patient` and `value` without nulls."""
    patients, values = long["patient"], long["value"]
    if kind == "text":
        return [tally(MANY, patients, pl.repeat("", long.height, eager=True))]
    if kind == "category":
        return [tally(VALUE, patients, values)]
    if kind == "date":
        time = (values.dt.truncate("1d") != values).to_numpy()
        clock = tally(CLOCK, patients, np.where(time, "time", "day"))
        return [clock, *rounded(patients, as_numbers(values), minimum)]
    numbers = as_numbers(values)
    facts = [tally(what, patients, labels) for what, labels in facts_of(numbers).items()]
    return [*facts, *rounded(patients, numbers, minimum)]


def tally(what: str, patients: pl.Series, labels: pl.Series | NDArray[np.str_]) -> pl.DataFrame:
    frame = pl.DataFrame({"cell": pl.Series(labels, dtype=pl.String), "patient": patients})
    counted = frame.group_by("cell").agg(
        pl.len().cast(pl.Int64).alias("count"), pl.col("patient").n_unique().cast(pl.Int64).alias("patients")
    )
    return counted.select(pl.lit(what).alias("what"), "cell", "count", "patients")


def as_numbers(values: pl.Series) -> Floats:
    """Numbers as they are, dates as days since 1970, the numbers that a scale's texts are (NaN where one is none)."""
    if values.dtype.is_temporal():
        values = values.dt.epoch("d")
    # Adding 0 makes a negative zero a zero.
    return values.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy() + 0.0


def facts_of(numbers: Floats) -> dict[str, NDArray[np.str_]]:
    """What is counted of numbers besides their size: what -> the class of each, shape (n,)."""
    exact = np.column_stack([shown_exactly(numbers, d) for d in range(MOST_DECIMALS + 1)])
    fewest = np.where(exact.any(axis=1), exact.argmax(axis=1).astype(str), "more")
    facts = {DECIMALS: fewest}
    cells = scientific(numbers, DIGITS).astype(np.float64)
    for decimals in range(MOST_DECIMALS + 1):
        units = np.round(numbers * 10.0**decimals)
        divisor = np.gcd(np.fmod(units, COARSEST).astype(np.int64), COARSEST)
        facts[multiple(decimals)] = np.where(units == 0, 0, divisor).astype(str)
        facts[printed(decimals)] = np.where(np.round(cells * 10.0**decimals) == units, "alike", "apart")
    return facts


def scientific(numbers: Floats, significant: int) -> NDArray[np.str_]:
    """Each number as text with so many significant digits: 1.470e+02."""
    distinct, place = np.unique(numbers, return_inverse=True)
    return np.array([f"{number:.{significant - 1}e}" for number in distinct], dtype=str)[place]


def rounded(patients: pl.Series, numbers: Floats, minimum: int) -> list[pl.DataFrame]:
    """Cells of four digits; numbers in cells with fewer patients than the minimum in cells of fewer digits."""
    parts = []
    if len(np.unique(scientific(numbers, DIGITS))) > MOST_CATEGORIES:
        # Once cells are folded, what is left does not tell.
        parts.append(tally(MANY, patients, pl.repeat("", len(patients), eager=True)))
    for significant in range(DIGITS, 0, -1):
        if not len(numbers):
            break
        labels = scientific(numbers, significant)
        cells = tally(digits(significant), patients, labels)
        enough = cells.filter(pl.col("patients") >= minimum) if significant > 1 else cells
        parts.append(enough)
        left = ~np.isin(labels, enough["cell"].to_numpy().astype(str))
        patients, numbers = patients.filter(left), numbers[left]
    return parts


def settle(cells: pl.DataFrame) -> pl.DataFrame:
    """One form for the same counts: of a quantity with more than 20 values that alone, and no list of categories."""
    listed = cells.filter(pl.col("what").is_in([VALUE, digits(DIGITS)])).group_by("quantity").len()
    crowded = listed.filter(pl.col("len") > MOST_CATEGORIES)["quantity"].to_list()
    crowded = sorted({*crowded, *cells.filter(pl.col("what") == MANY)["quantity"]})
    kept = cells.filter((pl.col("what") != MANY) & ~((pl.col("what") == VALUE) & pl.col("quantity").is_in(crowded)))
    marks = pl.DataFrame([(name, MANY, "", 1) for name in crowded], schema=SCHEMA, orient="row")
    return pl.concat([kept, marks]).sort(KEY)


def add(tables: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The counts of several sites together, `SCHEMA`; exact."""
    together = pl.concat([table.select(SCHEMA.names()) for table in tables])
    return settle(together.group_by(KEY).agg(pl.col("count").sum()))
