"""The arguments and the run of the benchmarks that look into a FedAvg run which benchmarks.noniid has kept."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from platformdirs import user_cache_path

from benchmarks._variants import Variants
from benchmarks.noniid import PLAIN, chosen_study
from server.run_folder import RunFolder, open_run


@contextmanager
def fedavg_run(description: str | None) -> Iterator[tuple[RunFolder, int]]:
    """The run under --folder and its seed; with --quick a small one that is made first and not kept."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two synthetic sites, a few steps, a smaller model")
    parser.add_argument("--folder", type=Path, help="of benchmarks.noniid; with --quick a temporary one")
    parser.add_argument("--seed", type=int, default=1, help="whose run to take")
    given = parser.parse_args()
    if given.folder is None and not given.quick:
        parser.error("give --folder, that of benchmarks.noniid")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        if given.quick:
            study = chosen_study(quick=True, rounds=None, test_questions=None)
            cache = user_cache_path("wardround") / "models"
            Variants({PLAIN: study}, place, cache, [given.seed]).play(PLAIN, given.seed)
        (run,) = (place / PLAIN).glob("*/run.json")
        yield open_run(run.parent), given.seed
