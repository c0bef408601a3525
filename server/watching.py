"""What a person sees while a run goes on: one bar an arm and seed, moved by the event log."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.study import Study
from server.arms import MODEL_ARMS, Watch
from server.run_folder import RunFolder, read_events
from server.workers import Job


class Bars:
    """Progress of a run folder; `round_finished` events move the bars, the accuracy is on validation patients."""

    def __init__(self, progress: Progress, folder: RunFolder, study: Study, seeds: list[int], arms: list[str]) -> None:
        self.progress, self.folder = progress, folder
        self.preparation: dict[int, TaskID] = {}
        self.bars: dict[tuple[str, int], TaskID] = {}
        self.finished: dict[tuple[str, int], set[str]] = {}
        self.size = -1
        for seed in seeds:
            for arm in arms:
                parts = len(study.sites.train) if arm == "local" else 1
                rounds = study.rounds.rounds if arm in MODEL_ARMS and arm != "base" else 0
                label = arm if len(seeds) == 1 else f"{arm}, seed {seed}"
                self.bars[arm, seed] = progress.add_task(label, total=parts * (rounds + 1), last="")

    def preparing(self, seed: int, what: str, share: float) -> None:
        if seed not in self.preparation:
            self.preparation[seed] = self.progress.add_task(f"base model, seed {seed}", total=100, last="")
        self.progress.update(self.preparation[seed], completed=round(100 * share), last=what)

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
            if place not in self.bars or event["event"] not in ("round_finished", "arm_finished"):
                continue
            done.setdefault(place, set()).add(f"{event.get('site', '')} {event.get('round', 'end')}")
            if event.get("accuracy") is not None:
                last[place] = f"validation {100 * event['accuracy']:.1f} %"
        for place, steps in done.items():
            self.progress.update(self.bars[place], completed=len(steps), last=last.get(place, ""))


@contextmanager
def watching(console: Console, folder: RunFolder, study: Study, seeds: list[int], arms: list[str]) -> Iterator[Watch]:
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
        yield Watch(bars.preparing, bars.tick)
