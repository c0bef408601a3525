"""Counts of this site's training patients, for a codebook that all sites share.

What was counted is kept, and the classes of the pairs with it: asked again the site says the same, and other classes
are refused. Otherwise two requests with slightly other cuts, or before and after an admission, would tell one patient.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from client.disk import write
from client.policy import BAD_REQUEST, Refusal
from client.replies import Counted
from client.site import Site
from common.questions.counts import count_values
from common.questions.joint import Layout, count_pairs
from common.registry.registry import load_registry, widen
from common.study import Study
from common.tasks.site_questions import training_rows


def counted(site: Site, study: Study, layout: Layout | None) -> Counted:
    """The answer to `query.count`.

    Args:
        layout: classes on which pairs are counted; None asks for values.

    Raises:
        Refusal: BAD_REQUEST for a study that does not share its codebook or in which this site does not train, and
            for other classes than those that were counted before.
    """
    if study.questions.codebook != "federated" or site.name not in study.sites.train:
        raise Refusal(BAD_REQUEST)
    folder = site.state / "studies" / study.hash
    registry = load_registry(site.registry)
    rows = training_rows(registry, study)
    patients = rows["patient"].n_unique()
    minimum = site.settings.policy.minimum_patients
    if layout is None:
        cells = keep(folder / "values.parquet", lambda: count_values(rows, registry.features, minimum))
        return Counted(patients, registry.features, None, cells)
    first = folder / "layout.json"
    if not first.exists():
        write(first, lambda part: part.write_text(layout.model_dump_json()))
    if first.read_text() != layout.model_dump_json():
        raise Refusal(BAD_REQUEST)
    # All declared columns, those without use here too, so that a quantity has the same times at every site.
    declared = site.registry.features
    pairs = keep(folder / "pairs.parquet", lambda: count_pairs(widen(rows, declared), declared, layout))
    return Counted(patients, (), layout, pairs)


def keep(path: Path, count: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """What was counted before, or is counted now and kept."""
    if not path.exists():
        cells = count()
        write(path, cells.write_parquet)
    return pl.read_parquet(path)
