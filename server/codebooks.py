"""One codebook for all sites of a run: given as a file, or from counts that the sites send before the first round.

Two exchanges (`common/questions/counts.py`, `joint.py`). What a site sends lies on the disk before the next step, and
the codebook is there once `codebook.toml` has its name; then the sites' own counts are deleted. Killed anywhere, a
coordinator that is started again asks only the sites whose counts are not there.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from common.errors import UserError
from common.questions.codebook import Codebook
from common.questions.codebook_file import read_codebook, to_toml
from common.questions.common_codebook import fit_columns, fit_from_counts, layout_of
from common.questions.counts import KEY, SCHEMA, add
from common.questions.joint import Layout
from common.registry.config import Feature
from common.registry.registry import merge_features
from common.strict import checked
from common.study import Study
from server.mailbox import Mailbox
from server.run_folder import read_json, write_json, write_text


@dataclass(frozen=True)
class Received:
    """What one site counted. `cells` names each count of values; a count of pairs has no name."""

    features: list[dict]
    cells: list[list[str]]
    counts: list[int]

    def used(self, site: str) -> list[Feature]:
        return [checked(Feature, values, f"site {site}") for values in self.features]

    def table(self) -> pl.DataFrame:
        names = pl.DataFrame(self.cells, schema=dict.fromkeys(KEY, pl.String()), orient="row")
        return names.with_columns(pl.Series("count", self.counts, dtype=pl.Int64)).select(SCHEMA.names())


def common_codebook(box: Mailbox, study: Study, folder: Path) -> Codebook | None:
    """The codebook that all sites build their questions with, kept in `folder`; None where each has its own.

    Raises:
        UserError: the file is no codebook or was changed, or a site does not send its counts.
    """
    if study.questions.codebook == "site":
        return None
    place = folder / "codebook.toml"
    if not place.exists():
        given = study.questions.codebook_file
        codebook = read_codebook(given) if given is not None else agree(box, study, folder / "counts")
        write_text(place, to_toml(codebook))
        box.log.write("codebook", sha256=codebook.hash)
    shutil.rmtree(folder / "counts", ignore_errors=True)
    return read_codebook(place)


def agree(box: Mailbox, study: Study, folder: Path) -> Codebook:
    """Ask for values, choose the classes, ask for pairs, fit."""
    values = ask_counts(box, study, None, folder / "values")
    features = merge_features({site: given.used(site) for site, given in values.items()})
    cells = add(given.table() for given in values.values())
    layout = layout_of(cells, features, fit_columns(cells, features))
    pairs = ask_counts(box, study, layout, folder / "pairs")
    total: NDArray[np.int64] = np.sum([given.counts for given in pairs.values()], axis=0, dtype=np.int64)
    return fit_from_counts(cells, total, features, study.questions)


def ask_counts(box: Mailbox, study: Study, layout: Layout | None, folder: Path) -> dict[str, Received]:
    """Every site's counts, by name; those that lie in `folder` are not asked for again.

    Raises:
        UserError: a site refuses, does not answer, or sends something else.
    """
    content = RecordDict({"study": ConfigRecord({"json": study.message, "hash": study.hash})})
    if layout is not None:
        content["layout"] = ConfigRecord({"json": layout.model_dump_json()})
    contents = {site: content for site in box.nodes if not (folder / f"{site}.json").exists()}
    for site, reply in box.ask("query.count", 0, contents, study.rounds.deadline_s):
        if reply.has_error():
            raise UserError(
                f"Site {site!r} sends no counts for the common codebook: {reply.error.reason}.",
                "Settle it with the site, then start again.",
            )
        received = received_in(reply, site, layout)
        write_json(folder / f"{site}.json", received.__dict__)
        box.log.write("counts_received", site=site, what="values" if layout is None else "pairs",
                      counts=len(received.counts))  # fmt: skip
    silent = [site for site in box.nodes if not (folder / f"{site}.json").exists()]
    if silent:
        raise UserError(
            f"Site {silent[0]!r} sent no counts for the common codebook.",
            "See whether it is running, then resume the run; the other sites' counts are kept.",
        )
    return {site: Received(**read_json(folder / f"{site}.json")) for site in sorted(box.nodes)}


def received_in(reply: Message, site: str, layout: Layout | None) -> Received:
    """A site's counts from its reply.

    Raises:
        UserError: the reply is not a vector of whole numbers, none negative, with its names or of the layout's length.
    """
    bad = UserError(f"Site {site!r} sent counts that are none.", "Let both sides run the same version of the program.")
    try:
        counts = reply.content.array_records["counts"]["counts"].numpy()
        texts = reply.content.config_records["cells"]
        cells, features = json.loads(str(texts["cells"])), json.loads(str(texts["features"]))
    except (KeyError, ValueError):
        raise bad from None
    expected = len(cells) if layout is None else int(layout.pairs.sum())
    named = isinstance(cells, list) and all(isinstance(c, list) and len(c) == len(KEY) for c in cells)
    whole = counts.dtype == np.int64 and counts.shape == (expected,) and bool((counts >= 0).all())
    if not whole or (layout is None and not named) or not isinstance(features, list):
        raise bad
    return Received(features, cells, counts.tolist())
