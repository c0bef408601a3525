"""How often do the two estimators of mutual information disagree about what is a shortcut?

    python -m common.questions.estimators SITE.toml [--rows 2000] [--threshold 0.5]

prints counts of ordered pairs (target, other). The rows stay at the site; only counts are printed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

from common.command import run
from common.questions.codebook import binned_pairs, fit_column
from common.questions.paper_codebook import fit_recorded, neighbour_pairs
from common.questions.randomness import choose, derive_seed
from common.questions.variables import as_quantities, stacked
from common.registry.config import read_registry_config
from common.registry.registry import Registry, load_registry


@dataclass(frozen=True)
class Agreement:
    """Ordered pairs whose target can be asked, by which estimator finds more than the threshold.

    `furthest`: the largest difference between the two, in nats.
    """

    rows: int
    pairs: int
    both: int
    binned_only: int
    neighbours_only: int
    furthest: float

    @property
    def disagreement(self) -> float:
        """Share of all pairs."""
        return (self.binned_only + self.neighbours_only) / self.pairs if self.pairs else 0.0


def compare(registry: Registry, threshold: float, rows: int, seed: int) -> Agreement:
    """Both estimators on the same patients, at most `rows` of them, each with its own fidelity's columns."""
    patients = choose(sorted(set(registry.frame["patient"])), rows, derive_seed(seed, "estimators"))
    frame = stacked(registry.frame.filter(pl.col("patient").is_in(patients)), registry.features)
    features = as_quantities(registry.features)
    strict = {f.column: fit_column(frame[f.column], f) for f in features}
    paper = {f.column: fit_recorded(frame[f.column], f, seed) for f in features}
    binned = binned_pairs(frame, features, strict)
    neighbours = neighbour_pairs(frame, features, paper, seed)
    asked = np.array([strict[c].maskable and paper[c].maskable for c in strict])
    counted = asked[:, None] & ~np.eye(len(asked), dtype=bool)
    by_bins, by_neighbours = binned > threshold, neighbours > threshold
    return Agreement(
        rows=frame.height,
        pairs=int(counted.sum()),
        both=int((by_bins & by_neighbours & counted).sum()),
        binned_only=int((by_bins & ~by_neighbours & counted).sum()),
        neighbours_only=int((~by_bins & by_neighbours & counted).sum()),
        furthest=float(np.abs(np.where(counted, binned - neighbours, 0.0)).max(initial=0.0)),
    )


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    site: Annotated[Path, typer.Argument(help="A site's TOML file.")],
    rows: Annotated[int, typer.Option(min=10, help="Patients at most; neighbours are slow.")] = 2000,
    threshold: Annotated[float, typer.Option(help="Nats.")] = 0.5,
    seed: int = 1,
) -> None:
    found = compare(load_registry(read_registry_config(site)), threshold, rows, seed)
    print(
        f"{found.rows} rows, {found.pairs} pairs: {found.both} over {threshold} nats by both, {found.binned_only} by "
        f"bins alone, {found.neighbours_only} by neighbours alone; disagreement {found.disagreement:.1%}; "
        f"furthest apart {found.furthest:.2f} nats"
    )


if __name__ == "__main__":
    run(app)
