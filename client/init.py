"""`wardround-site init`: write a first site file for a table, once, and never over an existing one."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from common.errors import UserError
from common.registry.config import read_registry_config
from common.registry.drafting.draft import describe, draft
from common.registry.drafting.look import Seen
from common.strict import explain


@dataclass(frozen=True)
class Written:
    path: Path
    seen: list[Seen]
    edits: int
    """Lines of the file that a person has to judge."""


def write_draft(place: str, out: Path | None, sheet: str, query: str) -> Written:
    """Look at the table and write its site file, `NAME.toml` for `NAME.csv` in this folder unless `out` is given.

    Raises:
        UserError: the file exists already or cannot be written, or the table is not readable.
    """
    try:
        table = describe(place, sheet, query)
    except ValidationError as error:
        raise explain(error, "init") from None
    path = out or Path(f"{site_name(Path(table.path).stem)}.toml")
    if path.exists():
        raise UserError(f"{path}: this file exists already.", "Give another one with --out.")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{path}: there is no such folder.", "Make it, or give another one with --out.")
    text, seen = draft(table, site_name(path.stem), path.resolve().parent)
    path.write_text(text, encoding="utf-8")
    read_registry_config(path)
    return Written(path, seen, text.count("EDIT: "))


def site_name(stem: str) -> str:
    """As a site may be called: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "hospital"
