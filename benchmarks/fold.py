"""Folding sites' models from the disk: its speed against adding tensors in memory, and its memory by sites.

`speed_ratio`: seconds of adding the sites' tensors, which lie in memory, to a float64 sum by torch, over seconds of
the fold with its mean and outer step from the sites' files (in the page cache). Both add as many values, in turn,
in one process; the fastest of several. `memory_growth`: the largest over the smallest memory that processes which
fold 4, 16 and 64 sites add to what they start with: the round's model, the next one and the fold itself; of the mean,
and with a name behind it of each robust fold.

    python -m benchmarks.fold [--quick] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.federation import Fold, Krum, Mean, Median, Sgd, TrimmedMean
from common.update.tensors import State
from server.fold import fold, normalised
from server.model_file import ModelFile
from server.outer import next_model, outer_optimizer

SITES = (4, 16, 64)
SPEED_SITES, REPEATS, QUICK_REPEATS = 4, 7, 3
TENSORS, QUICK_TENSORS = 64, 32
ROBUST_TENSORS = 8
"""Of the files' tensors, folded robustly: sorting 64 sites' values takes minutes on all of them."""
SHAPE = (512, 512)
"""Of each tensor: 1 MiB in float32."""
FOLDS: dict[str, Fold] = {
    "mean": Mean(),
    "trimmed_mean": TrimmedMean(name="trimmed-mean"),
    "median": Median(name="median"),
    "krum": Krum(name="krum"),
}


def model(seed: int, tensors: int) -> State:
    random = torch.Generator().manual_seed(seed)
    return {f"layer.{n}": torch.randn(SHAPE, generator=random) for n in range(tensors)}


def write(folder: Path, tensors: int) -> None:
    for n in range(SPEED_SITES):
        save_file(model(n, tensors), folder / f"{n}.safetensors")


def paths_of(folder: Path, sites: int) -> dict[str, Path]:
    """More sites than 4 share their files, so that 64 need no more space."""
    return {f"site-{n:02d}": folder / f"{n % SPEED_SITES}.safetensors" for n in range(sites)}


def stepped(paths: dict[str, Path], before: State, name: str) -> State:
    """What a round does with the updates that arrived."""
    with ExitStack() as opened:
        files = {site: opened.enter_context(ModelFile(path)) for site, path in paths.items()}
        folded = fold(FOLDS[name], normalised(dict.fromkeys(paths, 1.0)), files, before)
        return next_model(outer_optimizer(Sgd(), {}), before, folded.tensors)


def added(models: list[State]) -> State:
    """Plain float64 addition in memory."""
    total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in models[0].items()}
    for values in models:
        for name, value in values.items():
            total[name] += value.double()
    return total


def speeds(tensors: int, repeats: int) -> tuple[float, float]:
    """Seconds of the plain way and of ours, taken in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), tensors)
        paths = paths_of(Path(temporary), SPEED_SITES)
        models = [model(n, tensors) for n in range(SPEED_SITES)]
        plain, ours = [], []
        for _ in range(repeats):
            start = time.process_time()
            added(models)
            middle = time.process_time()
            stepped(paths, models[0], "mean")
            plain.append(middle - start)
            ours.append(time.process_time() - middle)
    return min(plain), min(ours)


def mib(figure: str) -> float:
    """Linux's own figure of this process: getrusage's peak starts with that of the process it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(figure)).split()[1]) / 1024


def child(sites: int, tensors: int, name: str, folder: Path) -> None:
    """Make a model, fold once, print by how many MiB this process's peak memory grew over its start."""
    # Once with one tensor, so that what libraries allocate at their first use is not counted.
    stepped(paths_of(folder, SPEED_SITES), model(0, 1), name)
    start = mib("VmRSS")
    stepped(paths_of(folder, sites), model(0, tensors), name)
    print(mib("VmHWM") - start)


def peaks(written: int, tensors: int, name: str) -> dict[int, float]:
    """By sites: MiB above the process's start, the round's model and the next one among them.

    Args:
        written: tensors in each site's file, of which the first `tensors` are the model.
    """
    # Tensors on pages of their own, which go back to the system when they are freed. glibc raises this threshold as it
    # goes, and then holes in its heap decide several MiB of a process's peak.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), written)
        measured = {}
        for sites in SITES:
            command = [sys.executable, "-m", "benchmarks.fold", "--child", str(sites), str(tensors), name, temporary]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            measured[sites] = float(done.stdout)
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller models: seconds")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--child", nargs=4, metavar=("SITES", "TENSORS", "FOLD", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        sites, tensors, name, folder = given.child
        child(int(sites), int(tensors), name, Path(folder))
        return
    tensors = QUICK_TENSORS if given.quick else TENSORS
    plain, ours = speeds(tensors, QUICK_REPEATS if given.quick else REPEATS)
    sizes = {name: tensors if name == "mean" else ROBUST_TENSORS for name in FOLDS}
    measured = {name: peaks(tensors, sizes[name], name) for name in FOLDS}
    growth = {name: max(m.values()) / min(m.values()) for name, m in measured.items()}
    if not given.json:
        values = SPEED_SITES * tensors * SHAPE[0] * SHAPE[1] / 1e6
        print(f"{SPEED_SITES} sites, {values:.0f} M values: plain addition {plain:.3f} s, fold and step {ours:.3f} s")
        for name, by_sites in measured.items():
            told = ", ".join(f"{sites} sites {peak:.0f} MiB" for sites, peak in by_sites.items())
            size = sizes[name] * SHAPE[0] * SHAPE[1] * 4 / 2**20
            print(f"{name}: the model is {size:.0f} MiB; added memory with {told}")
    keys = {"memory_growth" if name == "mean" else f"memory_growth_{name}": value for name, value in growth.items()}
    print(json.dumps({name: round(value, 4) for name, value in ({"speed_ratio": plain / ours} | keys).items()}))


if __name__ == "__main__":
    main()
