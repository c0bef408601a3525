"""A full disk or a missing right, told as a sentence."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polars.exceptions import PolarsError
from safetensors import SafetensorError

from common.errors import UserError

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""What a user can put right: no room, no right, a file where a folder should be."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def error_number(error: BaseException) -> int | None:
    """The system's; polars and safetensors hand it on in their errors' text."""
    if isinstance(error, OSError):
        return error.errno
    found = RUST_ERROR.search(str(error)) if isinstance(error, (SafetensorError, PolarsError)) else None
    return int(found[1]) if found else None


def no_room(error: BaseException) -> bool:
    """Whether a disk, or what this user may have of it, is full."""
    return error_number(error) in NO_ROOM


def disk_fault(error: Exception) -> str | None:
    """The system's word for one of `FAULTS`, or None."""
    number = error_number(error)
    return os.strerror(number) if number in FAULTS else None


@contextmanager
def named_disk_faults(path: Path | None = None) -> Iterator[None]:
    """Turn a full or forbidden disk into a sentence.

    Args:
        path: what is being written; the file that the error names unless given.

    Raises:
        UserError: the disk is full, or this user lacks the right.
    """
    try:
        yield
    except (OSError, SafetensorError, PolarsError) as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        named = error.filename if isinstance(error, OSError) else None
        raise UserError(
            f"{path or named or 'The disk'}: it cannot be used ({fault}).",
            "Make room, give this user the right or name another place; what was finished is kept.",
        ) from None
