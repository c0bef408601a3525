"""A command line in this process: a process of its own first imports for seconds."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(main: Callable[[], None], *arguments: object, cwd: Path = Path()) -> Done:
    """What `main` prints and exits with, given these arguments in the folder `cwd`, with nothing to read from stdin."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", [main.__module__, *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return Done(code, out.getvalue(), err.getvalue())
