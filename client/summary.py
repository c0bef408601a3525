"""The counts that `wardround-site check --share` writes to a file, for a person to pass on."""

import hashlib
from pathlib import Path

import polars as pl

from client import audit
from client.cells import is_name
from client.door import Asked, Door
from client.egress import log_refusal
from client.policy import NOT_ALLOWED, TOO_FEW_PATIENTS
from client.replies import Summarised
from common.disk import named_disk_faults
from common.errors import UserError

WHATS = ("feature", "outcome", "task")


def summary_text(summary: Summarised, least: int) -> str:
    """Counts are rounded down to a multiple of the minimum, so that the difference of two does not tell a few patients
    either. What rests on fewer is held back, an outcome's answer by name too: it may be a value that is rare."""
    lines = [f"Counts are rounded down to a multiple of {least}.", f"patients: {summary.patients // least * least}"]
    for (what,), part in summary.cells.group_by("what", maintain_order=True):
        told = part.filter(pl.col("patients") >= least)
        for name, count, patients in told.select("name", "count", "patients").iter_rows():
            behind = f" questions about {patients // least * least} patients" if what == "task" else " patients"
            lines.append(f"{what}: {name}: {count // least * least}{behind}")
        if told.height < part.height:
            few = part.filter(pl.col("patients") < least)["name"].to_list()
            which = f"{len(few)} answers" if what == "outcome" else ", ".join(few)
            lines.append(f"{what}: withheld, fewer than {least} patients: {which}")
    return "\n".join(lines) + "\n"


def share(door: Door, study: str, summary: Summarised, path: Path) -> None:
    """Write a summary for others to a file, and first into the audit log.

    Raises:
        UserError: the site has too few patients to tell anything, or a name in the summary is none.
    """
    least = door.policy.minimum_patients
    kinds = set(summary.cells["what"])
    if not kinds <= set(WHATS) or not all(map(is_name, summary.cells["name"])):
        log_refusal(door, Asked(study), NOT_ALLOWED, "a summary's line is none that summaries have")
        raise UserError(
            f"Site {door.site}: a declared name is too long or has characters that cannot be seen.",
            "Correct the names of features and outcomes, and the values of outcomes, in the site's file.",
        )
    if summary.patients < least:
        log_refusal(door, Asked(study), TOO_FEW_PATIENTS, "")
        raise UserError(
            f"Site {door.site}: fewer than {least} patients, too few for a summary to leave.",
            "Ask who keeps the site's policy.minimum_patients.",
        )
    data = f"site: {door.site}\n{summary_text(summary, least)}".encode()
    few = summary.cells.filter(pl.col("patients") < least).height
    held = f"{few} of {summary.cells.height} counts held back"
    passage = audit.Passage("Summarised", study, "", 0, len(data), hashlib.sha256(data).hexdigest(), held)
    audit.append(door.state / "audit.jsonl", passage)
    with named_disk_faults(path):
        path.write_bytes(data)
