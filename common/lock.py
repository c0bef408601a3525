"""A file that one process at a time holds. The system frees it when that process ends, however it ends."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.05


class Held(Exception):
    """Another process holds the file and went on holding it."""


@contextmanager
def only_one(lock: Path, wait_s: float = math.inf) -> Iterator[None]:
    """Hold this file, as soon as nobody else does; it is made if needed.

    Args:
        wait_s: how long another process may go on holding it.

    Raises:
        Held: it held on for longer.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + wait_s
    with lock.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Held from None
            time.sleep(POLL_S)
        yield
