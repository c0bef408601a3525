"""Writing an approval into the site's own file, where the hospital's people can see and review it."""

import os
import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

from client.site import read_site
from common.errors import UserError

LIST = re.compile(r"^(?P<start>[ \t]*approved[ \t]*=[ \t]*)\[[^\]]*\]", re.MULTILINE)
TABLE = re.compile(r"^\[client\.policy\][ \t]*(#.*)?$", re.MULTILINE)


def with_approvals(text: str, approved: tuple[str, ...]) -> str:
    """The file's text with `client.policy.approved` set; everything else, comments too, as it was."""
    value = "[" + "".join(f'\n  "{digest}",' for digest in approved) + "\n]"
    if LIST.search(text):
        return LIST.sub(lambda match: match["start"] + value, text, count=1)
    table = TABLE.search(text)
    if table:
        return f"{text[: table.end()]}\napproved = {value}{text[table.end() :]}"
    return f"{text.rstrip()}\n\n[client.policy]\napproved = {value}\n"


def expected(values: dict[str, Any], approved: tuple[str, ...]) -> dict[str, Any]:
    after = deepcopy(values)
    after.setdefault("client", {}).setdefault("policy", {})["approved"] = list(approved)
    return after


def approve(config: Path, digest: str) -> bool:
    """Add a study's SHA-256 to the site's approvals; False where it stood there already.

    Raises:
        UserError: the site's file is wrong, or its form leaves no safe place to write to.
    """
    policy = read_site(config, config.parent).settings.policy
    if digest in policy.approved:
        return False
    approved = (*policy.approved, digest)
    text = config.read_text(encoding="utf-8")
    new = with_approvals(text, approved)
    try:
        safe = tomllib.loads(new) == expected(tomllib.loads(text), approved)
    except tomllib.TOMLDecodeError:
        safe = False
    if not safe:
        raise UserError(
            f"{config}: the approval cannot be added without touching something else.",
            f'Add "{digest}" to client.policy.approved by hand.',
        )
    part = config.with_name(f".{config.name}.part")
    part.write_text(new, encoding="utf-8")
    part.chmod(config.stat().st_mode)
    os.replace(part, config)
    return True
