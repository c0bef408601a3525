"""Writing an approval into the site's own file, where the hospital's people can see and review it."""

import os
import re
import tomllib
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

from client.site import read_site
from common.errors import UserError

LIST = re.compile(r"^(?P<start>[ \t]*approved[ \t]*=[ \t]*)\[[^\]]*\]", re.MULTILINE)
TABLE = re.compile(r"^\[client\.policy\][ \t]*(#.*)?$", re.MULTILINE)
UNTIL = re.compile(r"^\[client\.policy\.until\][ \t]*(#.*)?$", re.MULTILINE)


def with_approvals(text: str, approved: tuple[str, ...]) -> str:
    """The file's text with `client.policy.approved` set; everything else, comments too, as it was."""
    value = "[" + "".join(f'\n  "{digest}",' for digest in approved) + "\n]"
    if LIST.search(text):
        return LIST.sub(lambda match: match["start"] + value, text, count=1)
    table = TABLE.search(text)
    if table:
        return f"{text[: table.end()]}\napproved = {value}{text[table.end() :]}"
    return f"{text.rstrip()}\n\n[client.policy]\napproved = {value}\n"


def with_end(text: str, digest: str, last: date) -> str:
    """The file's text with the last day of a study's approval."""
    line = f"{digest} = {last.isoformat()}"
    table = UNTIL.search(text)
    if table:
        return f"{text[: table.end()]}\n{line}{text[table.end() :]}"
    return f"{text.rstrip()}\n\n[client.policy.until]\n{line}\n"


def expected(
    values: dict[str, Any], approved: tuple[str, ...], ends: dict[str, date] | None = None
) -> dict[str, Any]:
    after = deepcopy(values)
    policy = after.setdefault("client", {}).setdefault("policy", {})
    policy["approved"] = list(approved)
    if ends:
        policy["until"] = policy.get("until", {}) | ends
    return after


def approve(config: Path, digest: str, last: date | None = None) -> bool:
    """Add a study's SHA-256 to the site's approvals; False where it stood there already.

    Args:
        last: the last day on which the approval holds; without an end unless given.

    Raises:
        UserError: the site's file is wrong, or its form leaves no safe place to write to.
    """
    policy = read_site(config, config.parent).settings.policy
    if digest in policy.approved and last in (None, policy.until.get(digest)):
        return False
    approved = tuple(dict.fromkeys([*policy.approved, digest]))
    text = config.read_text(encoding="utf-8")
    new = with_approvals(text, approved)
    if last is not None:
        new = with_end(new, digest, last)
    try:
        safe = tomllib.loads(new) == expected(tomllib.loads(text), approved, {digest: last} if last else None)
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
