"""A function in a process of its own, so that nothing of one measurement is left for the next."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """The function's result from a fresh copy of this process, which must not have trained anything itself."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, given)
