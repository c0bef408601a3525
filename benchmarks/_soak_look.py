"""What a soak sees after each round: the memory of the long-lived processes, the bytes and the number of files."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._faults import Run, Wired, size

COORDINATOR = {"superlink": "flower-superlink", "coordinator's executor": "flower-superexec", "serve": "wardround",
               "bulk service": "server.bulk_service"}  # fmt: skip
SITE = {"join": "wardround-site", "node": "flower-supernode", "executor": "client.executor", "apps' parent": "warm.py"}


@dataclass(frozen=True)
class Look:
    """Attributes:
    seconds: since the run began.
    rss: bytes by process, of sites the largest.
    bytes: by folder, of sites the largest; files: their number.
    """

    round: int
    seconds: float
    rss: dict[str, int]
    bytes: dict[str, int]
    files: dict[str, int]


def look(made: Wired, run: Run, number: int) -> Look:
    folders = {
        "coordinator": [path for path in files(made.coordinator.folder) if not path.name.startswith("state.db")],
        "database": list(made.coordinator.folder.glob("state.db*")),
        "run": list(files(run.folder)),
    }
    sites = [list(files(made.folder / site / "state")) for site in made.sites]
    sizes = {name: total(paths) for name, paths in folders.items()} | {"site": max(map(total, sites))}
    counts = {name: len(paths) for name, paths in folders.items()} | {"site": max(map(len, sites))}
    begun = run.events("submitted")[0]["time"]
    return Look(number, time.time() - begun, memory(made), sizes, counts)


def files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def total(paths: Iterable[Path]) -> int:
    return sum(map(size, paths))


def memory(made: Wired) -> dict[str, int]:
    """Of what runs below this folder; a process that is just being started again is left out."""
    known, found = COORDINATOR | SITE, dict[str, int]()
    for process in psutil.process_iter(["cmdline", "memory_info", "environ", "cwd", "name"]):
        line, told = process.info["cmdline"] or [], process.info["memory_info"]
        if not str(process.info["cwd"]).startswith(str(made.folder)) or told is None:
            continue
        if process.info["name"] == "flwr-clientapp":  # forked from the apps' parent, whose command line it has
            continue
        parts = {Path(part).name for part in line[:4]}
        for name, word in known.items():
            if word in parts and not (name == "serve" and "serve" not in line):
                found[name] = max(found.get(name, 0), told.rss)
    return found


def growth(looks: list[Look]) -> dict[str, float]:
    """Median of the last third over that of the middle third, by process."""
    third = len(looks) // 3
    if third == 0:
        return {}
    middle, last = looks[third : 2 * third], looks[-third:]
    told = {}
    for name in sorted({name for seen in looks for name in seen.rss}):
        before, after = ([seen.rss[name] for seen in part if name in seen.rss] for part in (middle, last))
        if before and after:
            told[name] = round(statistics.median(after) / statistics.median(before), 3)
    return told


def slopes(looks: list[Look]) -> dict[str, int]:
    """Bytes a round over the last two thirds, by folder."""
    first, last = looks[len(looks) // 3], looks[-1]
    if first is last:
        return {}
    return {name: round((last.bytes[name] - first.bytes[name]) / (last.round - first.round)) for name in last.bytes}


def draw(result: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    looks, faulty = result["looks"], sorted({fault["round"] for fault in result["faults"]})
    for axis, what, unit in zip(axes, ("rss", "bytes"), (1e6, 1e3), strict=True):
        for number in faulty:
            axis.axvline(number, color="0.9", linewidth=1)
        for name in sorted({name for seen in looks for name in seen[what]}):
            points = [(seen["round"], seen[what][name] / unit) for seen in looks if name in seen[what]]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(xlabel="round (grey: with a fault)", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set(ylabel="memory of a process (RSS, MB; of sites the largest)")
    axes[1].set(ylabel="folder (kB; of sites the largest)")
    figure.savefig(file, dpi=110)
