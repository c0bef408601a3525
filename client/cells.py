"""What of a site's counts for a common codebook may leave: which cells, under which names, in which form.

Every cell is one that the study's definition of the counts names (common/questions/counts.py): a declared column, a
known question about it, an answer in the form that this question has. A category's own text is the only free one, and
leaves only where enough patients have it.
"""

import json
import re

import numpy as np
import polars as pl
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.policy import NOT_ALLOWED, Policy, Refusal
from client.replies import Counted
from common.questions.codebook import MOST_CATEGORIES, MOST_DECIMALS
from common.questions.counts import (
    CLOCK,
    DECIMALS,
    DIGITS,
    HIDDEN,
    KEY,
    MANY,
    ROWS,
    VALUE,
    digits,
    multiple,
    printed,
)
from common.registry.config import Feature
from common.registry.registry import printed as shown

LONGEST_TEXT = 200
"""Characters of a name or a category."""
NOTHING = re.compile("")
FORMS = {
    ROWS: NOTHING,
    HIDDEN: NOTHING,
    MANY: NOTHING,
    DECIMALS: re.compile(f"[0-{MOST_DECIMALS}]|more"),
    CLOCK: re.compile("day|time"),
    digits(1): re.compile(r"-?[0-9]e[+-][0-9]{2,3}"),
    **{digits(n): re.compile(rf"-?[0-9]\.[0-9]{{{n - 1}}}e[+-][0-9]{{2,3}}") for n in range(2, DIGITS + 1)},
    **{multiple(n): re.compile("[0-9]{1,4}") for n in range(MOST_DECIMALS + 1)},
    **{printed(n): re.compile("alike|apart") for n in range(MOST_DECIMALS + 1)},
}
"""What is counted -> the form of its cells; the texts of `VALUE` have none."""


def counted_records(reply: Counted, permitted: Policy) -> RecordDict:
    """The counts that rest on enough patients, with their names.

    Raises:
        Refusal: NOT_ALLOWED for anything that is no count of the declared columns.
    """
    check_features(reply.features)
    if reply.layout is None:
        check_cells(reply, permitted)
    elif reply.names or reply.cells.height != int(reply.layout.pairs.sum()):
        raise Refusal(NOT_ALLOWED, "the counts of pairs are not one for each pair of classes")
    enough = pl.col("patients") >= permitted.minimum_patients
    cells = reply.cells.filter(enough) if reply.names else reply.cells.with_columns(pl.col("count") * enough)
    features = [shown(feature).model_dump(mode="json", exclude_defaults=True) for feature in reply.features]
    texts = {"cells": json.dumps(cells.select(reply.names).rows()), "features": json.dumps(features)}
    counts = Array(cells["count"].to_numpy().astype(np.int64))
    return RecordDict({"counts": ArrayRecord({"counts": counts}), "cells": ConfigRecord(dict(texts))})


def is_name(text: str) -> bool:
    """Short, and of characters that a person can see."""
    return len(text) <= LONGEST_TEXT and text.isprintable()


def check_features(features: tuple[Feature, ...]) -> None:
    """Raises: Refusal(NOT_ALLOWED)."""
    for feature in features:
        texts = (feature.column, feature.name, feature.unit, feature.section, feature.known, feature.variable)
        if not all(map(is_name, texts)):
            raise Refusal(NOT_ALLOWED, f"a declared column has a text of over {LONGEST_TEXT} or of hidden characters")


def check_cells(reply: Counted, permitted: Policy) -> None:
    """Raises: Refusal(NOT_ALLOWED)."""
    if reply.cells.columns != [*KEY, "count", "patients"] or reply.cells.null_count().transpose().sum().item():
        raise Refusal(NOT_ALLOWED, "the counts are no table of counts")
    keys = reply.cells.select(KEY)
    if keys.is_duplicated().any() or not keys.equals(keys.sort(KEY)):
        raise Refusal(NOT_ALLOWED, "a count stands twice, or not in its place")
    kinds = {feature.quantity: feature.kind for feature in reply.features}
    for quantity, what, cell, count, patients in reply.cells.iter_rows():
        if quantity not in kinds and (quantity, what) not in (("", ROWS), ("", HIDDEN)):
            raise Refusal(NOT_ALLOWED, "a count is of a column that is not declared")
        if what == VALUE:
            fits = kinds[quantity] == "category" and is_name(cell)
        else:
            fits = what in FORMS and FORMS[what].fullmatch(cell) is not None
        if not fits:
            raise Refusal(NOT_ALLOWED, "a count's name is none that counts have")
        told = {HIDDEN: permitted.minimum_patients - 1, MANY: 1}
        if count != told[what] if what in told else count < patients:
            raise Refusal(NOT_ALLOWED, "a count is not what stands behind it")
    listed = reply.cells.filter(pl.col("what") == VALUE).group_by("quantity").len()
    if (listed["len"] > MOST_CATEGORIES).any():
        raise Refusal(NOT_ALLOWED, f"a column lists more than {MOST_CATEGORIES} values")
