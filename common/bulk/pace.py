"""A limit of bytes a second, shared by all transfers that are given the same `Pace`."""

import threading
import time


class Pace:
    """Bytes wait until the ones before them have had their time.

    Whoever is held back does not read (or send), so TCP's own back-pressure holds the other end.
    """

    def __init__(self, bytes_per_s: float | None) -> None:
        """`bytes_per_s`: no limit where there is none."""
        self.bytes_per_s = bytes_per_s
        self.lock = threading.Lock()
        self.free_at = time.monotonic()

    def wait(self, count: int) -> None:
        """Return when `count` more bytes may go."""
        if self.bytes_per_s is None:
            return
        with self.lock:
            # An idle time is not saved up: the rate holds over any second.
            self.free_at = max(self.free_at, time.monotonic()) + count / self.bytes_per_s
            pause = self.free_at - time.monotonic()
        time.sleep(max(0.0, pause))
