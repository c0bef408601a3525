"""What both commands begin with, and what they do with a user's mistake."""

import os
import sys
from collections.abc import Callable

from rich.console import Console

from common.disk import named_disk_faults
from common.errors import UserError
from common.way_out import settle


def run(app: Callable[[], object]) -> None:
    """Run a command line; a user's mistake is one sentence with its remedy, and exit code 2."""
    settle(os.environ)
    try:
        with named_disk_faults():
            app()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"{error.what}\n{error.remedy}", markup=False, soft_wrap=True)
        sys.exit(2)
