"""Whether a site's registry is still the one behind a study's questions: looked at when the study is configured again.

The questions of a study stay those of its first configuration, in a run that is resumed and in another run of the same
study. A hospital's export may be a new one every night, so a changed registry is no fault, and no reason to lose a run
that is under way; but it is never silent:

    studies/HASH/changed    the sentence, while it holds
"""

from pathlib import Path

from client.disk import write
from client.site import Site
from common.errors import UserError
from common.registry.stored import digest, stored_registry

NAME = "changed"


def changed_since(site: Site, folder: Path, built_from: str, built: str) -> str:
    """A sentence without a value from the registry, or nothing where it has not changed.

    Args:
        folder: the study's.
        built_from: digest of what the questions were built from; built: the day.
    """
    try:
        with stored_registry(site.registry, folder) as registry:
            same = digest(registry) == built_from
        said = "" if same else f"the registry is no longer that of {built}, the study keeps the questions of that day"
    except UserError:  # the questions are there, and the run needs no more
        said = f"the registry cannot be read (`wardround-site check` says why), the questions are those of {built}"
    note = folder / NAME
    if said:
        write(note, lambda part: part.write_text(said, encoding="utf-8"))
    else:
        note.unlink(missing_ok=True)
    return said


def said_of(folder: Path) -> str:
    """What was found when the study was last configured."""
    note = folder / NAME
    return note.read_text(encoding="utf-8") if note.exists() else ""
