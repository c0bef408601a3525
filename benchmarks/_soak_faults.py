"""The faults of a soak: drawn from a seed before it begins, then done to whoever is there."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from benchmarks._faults import Run, Wired
from benchmarks._relay import Fault

AT_SITES = ("app", "apps' parent", "executor", "node")
AT_COORDINATOR = ("superlink", "coordinator's app", "command", "bulk service", "coordinator's executor")
ON_THE_WIRE = ("cut", "damaged", "answer lost")
LATEST_S, LONGEST_BYTES = 5.0, 100_000
THERE_S = 20.0
"""So long is waited for a process that is to be killed and is not there, as an app between two messages."""


@dataclass(frozen=True)
class Planned:
    round: int
    kind: str
    site: str
    after_s: float
    """Of the round's beginning."""
    up: bool
    bytes: int
    """That pass before a wire is hit."""


def plan(sites: tuple[str, ...], rounds: int, seed: int, often: float) -> list[Planned]:
    """None in the first and last round; each kind before any comes again.

    Args:
        often: probability of one in a round.
    """
    draw, kinds, planned = random.Random(seed), list[str](), list[Planned]()
    for number in range(2, rounds):
        if draw.random() >= often:
            continue
        if not kinds:
            kinds = [*AT_SITES, *AT_COORDINATOR, *ON_THE_WIRE]
            draw.shuffle(kinds)
        site, after, up = draw.choice(sites), draw.uniform(0.0, LATEST_S), draw.random() < 0.5
        planned.append(Planned(number, kinds.pop(), site, after, up, draw.randrange(LONGEST_BYTES)))
    return planned


class Saboteur:
    """Does them, to this consortium and run."""

    def __init__(self, made: Wired, run: Run) -> None:
        self.made, self.run = made, run

    def kill(self, find: Callable[[], psutil.Process]) -> str:
        end = time.monotonic() + THERE_S
        while True:
            try:
                find().kill()
                return "killed"
            except (AssertionError, psutil.NoSuchProcess):
                if time.monotonic() > end:
                    return "not there"
            time.sleep(0.02)

    def do(self, fault: Planned) -> str:
        """What was done, in words."""
        time.sleep(fault.after_s)
        made, site = self.made, fault.site
        match fault.kind:
            case "app":
                told = self.kill(lambda: made.at_site(site, "flwr-clientapp"))
            case "apps' parent":
                told = self.kill(lambda: made.at_site(site, "warm.py"))
            case "executor":
                told = self.kill(lambda: made.at_site(site, made.executor))
            case "node":
                told = self.kill(lambda: made.at_site(site, "flower-supernode"))
            case "superlink":
                told = self.kill(lambda: made.at_coordinator("flower-superlink"))
            case "coordinator's app":
                told = self.kill(lambda: made.at_coordinator("flwr-serverapp"))
            case "coordinator's executor":
                told = self.kill(lambda: made.at_coordinator("flower-superexec"))
            case "bulk service":
                told = self.kill(made.bulk_service)
            case "command":
                self.run.process.child.kill()
                told = "killed"
            case wire:
                made.wire.hit(Fault[wire.replace(" ", "_").upper()], fault.up, fault.bytes)
                told = f"after {fault.bytes} bytes {'up' if fault.up else 'down'}"
        return f"{fault.kind}{f' of {site}' if fault.kind in AT_SITES else ''}: {told}"
