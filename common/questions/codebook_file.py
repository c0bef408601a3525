"""A codebook as a file: TOML that a person can read and compare, with its own hash in it.

version = 1
sha256 = "..."        of everything below, as canonical JSON
mi_threshold = 0.5
[[columns]]           one for each column: kind, printed values, counts ...
[excluded]            masked column -> columns left out of its prompt
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import UserError
from common.questions.codebook import Codebook
from common.questions.printing import AS_RECORDED
from common.registry.config import Feature
from common.strict import read_toml
from common.study import Questions

VERSION = 1


def to_toml(codebook: Codebook) -> str:
    return tomli_w.dumps({"version": VERSION, "sha256": codebook.hash, **codebook.to_dict()})


def from_toml(text: str, source: str) -> Codebook:
    """Read what `to_toml` wrote.

    Raises:
        UserError: not a codebook of this version, or not the bytes that were written.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML ({error}).", "Put the file back as it was written.") from None
    return from_values(values, source)


def read_codebook(path: Path) -> Codebook:
    """Read a codebook file.

    Raises:
        UserError: missing, not a codebook of this version, or changed since it was written.
    """
    return from_values(read_toml(path), str(path))


def given_codebook(spec: Questions) -> Codebook | None:
    """The codebook file that a study names, if it names one."""
    return read_codebook(spec.codebook_file) if spec.codebook_file is not None else None


def from_values(values: dict[str, Any], source: str) -> Codebook:
    version, digest = values.pop("version", None), values.pop("sha256", None)
    if version != VERSION:
        raise UserError(
            f"{source}: its codebook version is {version!r}, this program reads {VERSION}.",
            "Write the codebook anew with this version of the program.",
        )
    try:
        codebook = Codebook.from_dict(values)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{source}: this is no whole codebook.", "Put the file back as it was written.") from None
    if codebook.hash != digest:
        raise UserError(f"{source}: it was changed since it was written.", "Put the file back as it was written.")
    return codebook


def check_codebook(codebook: Codebook, features: Sequence[Feature], spec: Questions, source: str) -> None:
    """Whether questions about these features can be built with it as the study says.

    Raises:
        UserError: a feature is missing, or it was fitted with another threshold or for the paper's construction.
    """
    missing = [f.column for f in features if f.quantity not in codebook.columns]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} features of this site are not in it, the first is {missing[0]!r}.",
            "Take a codebook that was fitted with the site's feature dictionary.",
        )
    if codebook.mi_threshold != spec.mi_threshold:
        raise UserError(
            f"{source}: pairs were left out over {codebook.mi_threshold} nats, the study says {spec.mi_threshold}.",
            "Set questions.mi_threshold to the codebook's, or take another codebook.",
        )
    if any(column.decimals == AS_RECORDED for column in codebook.columns.values()):
        raise UserError(f"{source}: it is a codebook of the paper's construction.", "Take one fitted under `strict`.")


def differences(first: Codebook, second: Codebook) -> list[str]:
    """One line for each column and excluded pair in which two codebooks differ."""
    lines = []
    if first.mi_threshold != second.mi_threshold:
        lines.append(f"mi_threshold: {first.mi_threshold} against {second.mi_threshold}")
    for column in [*first.columns, *(c for c in second.columns if c not in first.columns)]:
        if column not in first.columns or column not in second.columns:
            lines.append(f"{column}: in the {'second' if column not in first.columns else 'first'} alone")
            continue
        one, other = (book.to_dict()["columns"][list(book.columns).index(column)] for book in (first, second))
        changed = [key for key in one if one[key] != other[key]]
        lines += [f"{column}: {key}: {short(one[key])} against {short(other[key])}" for key in changed]
    for column in sorted({*first.excluded, *second.excluded}):
        before, after = set(first.excluded.get(column, ())), set(second.excluded.get(column, ()))
        lines += [f"{column}: leaves out {other}: the first alone" for other in sorted(before - after)]
        lines += [f"{column}: leaves out {other}: the second alone" for other in sorted(after - before)]
    return lines


def short(value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, list) and len(value) > 3 else repr(value)
