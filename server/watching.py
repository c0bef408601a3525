"""What a person sees while a run goes on: one bar an arm and seed, moved by the event log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.study import Study
from server.arms import MODEL_ARMS
from server.run_folder import RunFolder, read_events
from server.workers import Job

Tick = Callable[[list[Job]], None]


class Bars:
    """Progress of a run folder: the log is read again when it has grown; finished rounds move the bars.

    The accuracy beside a bar is that on validation patients.
    """

    def __init__(self, progress: Progress, folder: RunFolder, study: Study, seeds: list[int], arms: list[str]) -> None:
        self.progress, self.folder = progress, folder
        self.bars: dict[tuple[str, int], TaskID] = {}
        self.size = -1
        for seed in seeds:
            self.bars["model", seed] = progress.add_task(self.label("base model", seed, seeds), total=None, last="")
        for seed in seeds:
            for arm in arms:
                parts = len(study.sites.train) if arm == "local" else 1
                rounds = study.rounds.rounds if arm in MODEL_ARMS and arm != "base" else 0
                total = 1 if arm == "yardsticks" else parts * (rounds + 1)
                self.bars[arm, seed] = progress.add_task(self.label(arm, seed, seeds), total=total, last="")

    @staticmethod
    def label(what: str, seed: int, seeds: list[int]) -> str:
        return what if len(seeds) == 1 else f"{what}, seed {seed}"

    def tick(self, finished: list[Job]) -> None:
        path = self.folder.events
        size = path.stat().st_size if path.exists() else 0
        if size == self.size:
            return
        self.size = size
        done: dict[tuple[str, int], set[str]] = {}
        last: dict[tuple[str, int], str] = {}
        for event in read_events(path):
            place = (event.get("arm", ""), event.get("seed", 0))
            if event["event"] == "base_model":
                self.progress.update(self.bars[place], completed=event["done"], total=event["total"])
            if place not in self.bars or event["event"] not in ("round_finished", "arm_finished"):
                continue
            done.setdefault(place, set()).add(f"{event.get('site', '')} {event.get('round', 'end')}")
            if event.get("accuracy") is not None:
                last[place] = f"validation {100 * event['accuracy']:.1f} %"
        for place, steps in done.items():
            self.progress.update(self.bars[place], completed=len(steps), last=last.get(place, ""))


@contextmanager
def watching(console: Console, folder: RunFolder, study: Study, seeds: list[int], arms: list[str]) -> Iterator[Tick]:
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[last]}"),
    )
    with Progress(*columns, console=console) as progress:
        bars = Bars(progress, folder, study, seeds, arms)
        bars.tick([])
        yield bars.tick
