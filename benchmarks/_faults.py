"""A run over real nodes whose parts are killed and whose wires are cut, and what can be seen of it meanwhile."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._consortium import Consortium, command, last_round
from benchmarks._relay import Relay
from common.processes import Process
from server.round_store import Checkpoint
from server.run_folder import read_events, read_json

LONGEST_S = 600.0
"""Flower takes up to a minute to report a killed process, and as long to let a killed node in again; on a loaded
machine each message takes half a minute more."""


def until(true: Callable[[], object], what: str) -> None:
    """Look often, and at most for a third of the time: what is waited for needs the processor."""
    end = time.monotonic() + LONGEST_S
    looked = time.monotonic()
    while not true():
        now = time.monotonic()
        assert now < end, what
        time.sleep(max(0.02, 2 * (now - looked)))
        looked = time.monotonic()


def size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:  # it is whole by now, and has its name
        return 0


class Wired(Consortium):
    """Sites dial in through relays, which take connections for a coordinator that is away too."""

    bulk_options: tuple[object, ...] = ()

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...]) -> None:
        super().__init__(folder, study, model, sites)
        self.wire, self.bulk_wire = Relay(self.port), Relay(self.bulk_port)

    def serve(self) -> Process:
        given = ("--port", self.port, "--bulk-port", self.bulk_port, *self.bulk_options)
        return self.start("serve", *command("wardround", "serve", "coordinator", *given))

    def addresses(self, site: str) -> tuple[object, ...]:
        return "--coordinator", f"{self.host}:{self.wire.port}", "--bulk", f"{self.host}:{self.bulk_wire.port}"


class Run:
    """`wardround run` in the background, and what can be seen of it."""

    def __init__(self, consortium: Wired, study: Path | None = None) -> None:
        self.consortium = consortium
        runs = consortium.folder / "runs"
        before = set(runs.glob("*/run.json"))
        self.process = self.start("run", study or consortium.study, "--model", consortium.model)
        until(lambda: set(runs.glob("*/run.json")) - before, "the run's folder")
        (made,) = set(runs.glob("*/run.json")) - before
        self.folder = made.parent
        self.arm = self.folder / "seed-1" / "federated"

    def start(self, *arguments: object) -> Process:
        return self.consortium.start("run", *command("wardround", *arguments, "--coordinator", "coordinator"))

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["event"] in names]

    def shard_came(self, site: str, number: int) -> bool:
        """Whether some of a site's update lies here, and not all of it."""
        parts = (self.arm / f"received-{number:04d}").glob(f".{site}-*.payload.*.part")
        return any(size(part) for part in parts)

    def uploading(self, site: str) -> bool:
        """Whether the bulk channel holds some of a payload of this site, and not all of it."""
        return any((self.consortium.coordinator.bulk / site).glob(".up-*.payload.*.part"))

    def site_files(self, site: str, name: str) -> list[Path]:
        """A file of the run's folder at a site, if it is there."""
        return list((self.consortium.folder / site / "state").glob(f"studies/*/runs/{self.folder.name}/{name}"))

    def training(self, site: str, number: int) -> bool:
        """Whether a site has taken a step of a round, and not its last."""
        noted = [read_json(path) for path in self.site_files(site, "progress.json")]
        return any(note["round"] == number and note["step"] < note["steps"] for note in noted)

    def trained(self, site: str, number: int) -> bool:
        """Whether the site's answer for a round lies on its disk."""
        return any(read_json(path)["asked"]["round"] == number for path in self.site_files(site, "last.json"))

    def end(self) -> Checkpoint:
        until(lambda: not self.process.running, "the run's end")
        assert self.process.wait(0) == 0, self.process.log.read_text()
        return last_round(self.arm)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.round == b.round and all(torch.equal(a.model[name], value) for name, value in b.model.items())
