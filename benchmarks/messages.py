"""Where the time of each message to a real site goes: two sites and a coordinator on this machine, the tiny study.

Read from outside while the study runs: the SuperLink's database (posted, taken by the node, answered, read), the
processes below the site's executor, and the site's audit log (work done, at the door). Seconds:

    node      posted by the coordinator -> taken by the site's node
    executor  taken by the node -> the app's process is there
    app       its imports and work, up to the door
    back      from the door -> the answer is in the SuperLink
    read      the answer is in the SuperLink -> the coordinator has taken it

    python -m benchmarks.messages [--rounds N] [--quick]
"""

import argparse
import json
import os
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks._consortium import Consortium, command, done, running_consortium
from benchmarks._tiny import TINY, answering_model
from server.run_folder import read_events

LOOK_S = 0.04
PHASES = ("node", "executor", "app", "back", "read")


@dataclass
class Seen:
    """One message and when its stations were passed, in seconds since 1970; 0 where that was not seen."""

    kind: str
    node: int
    posted: float
    taken: float = 0.0
    started: float = 0.0
    door: float = 0.0
    answered: float = 0.0
    read: float = 0.0

    def seconds(self) -> dict[str, float]:
        stations = (self.posted, self.taken, self.started, self.door, self.answered, self.read)
        return {phase: after - before for phase, before, after in zip(PHASES, stations, stations[1:], strict=False)}


@dataclass
class Watch:
    """Attributes:
    started: site -> when each of its apps' processes was started, by process id.
    """

    made: Consortium
    messages: dict[str, Seen] = field(default_factory=dict)
    started: dict[str, dict[int, float]] = field(default_factory=dict)

    def look(self) -> None:
        now = time.time()
        uri = f"file:{self.made.coordinator.folder / 'state.db'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as base:
            asked = base.execute(
                "select message_id, message_type, dst_node_id, created_at, delivered_at from message_ins"
            )
            for message, kind, node, posted, taken in asked.fetchall():
                seen = self.messages.setdefault(message, Seen(kind, node, posted))
                if taken:
                    seen.taken = datetime.fromisoformat(taken).timestamp()
            answers = dict(base.execute("select reply_to_message_id, delivered_at from message_res").fetchall())
        for message, seen in self.messages.items():
            if message in answers and not seen.answered:
                seen.answered = now
            if seen.answered and not seen.read and (message not in answers or answers[message]):
                seen.read = now

    def look_at_processes(self, executors: dict[str, psutil.Process]) -> None:
        for site, executor in executors.items():
            for app in executor.children(recursive=True):
                try:
                    self.started.setdefault(site, {}).setdefault(app.pid, app.create_time())
                except psutil.NoSuchProcess:
                    continue

    def join(self, sites: dict[int, str]) -> list[tuple[str, Seen]]:
        """Which process and which line of the audit log are which message's: one at a time at a site, in order."""
        whole = [(sites[seen.node], seen) for seen in self.messages.values() if seen.read]
        for site, seen in whole:
            log = self.made.folder / site / "state" / "audit.jsonl"
            times = [json.loads(line)["time"] for line in log.read_text().splitlines()]
            within = [told for told in times if seen.taken <= told <= seen.answered]
            begun = [told for told in self.started[site].values() if seen.taken - 0.05 <= told <= seen.answered]
            if within and begun:
                seen.door, seen.started = within[0], begun[0]
        return [(site, seen) for site, seen in whole if seen.door]


def measure(made: Consortium) -> list[tuple[str, Seen]]:
    """One run of the consortium's study."""
    watch = Watch(made)
    executors = {site: made.at_site(site, made.executor) for site in made.sites}
    line = ("run", made.study, "--coordinator", "coordinator", "--model", made.model)
    run = made.start("run", *command("wardround", *line))
    while run.running:
        watch.look()
        watch.look_at_processes(executors)
        time.sleep(LOOK_S)
    if run.wait(0) != 0:
        raise RuntimeError(run.log.read_text())
    nodes = json.loads((made.coordinator.folder / "nodes.json").read_text())
    return watch.join({signed(int(node["node"])): site for site, node in nodes.items()})


def signed(number: int) -> int:
    """Flower's node id as its database has it."""
    return number - 2**64 if number >= 2**63 else number


def table(messages: list[tuple[str, Seen]]) -> str:
    lines = ["| site | message | " + " | ".join(PHASES) + " | together |", "|---" * (len(PHASES) + 3) + "|"]
    for site, seen in sorted(messages, key=lambda told: (told[1].posted, told[0])):
        seconds = seen.seconds()
        shown = [f"{value:.1f}" for value in (*seconds.values(), sum(seconds.values()))]
        lines.append(f"| {site.removeprefix('synthetic-')} | {seen.kind} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def whole_run(folder: Path) -> dict[str, float]:
    """Seconds of the run and of its rounds, by its own log."""
    (place,) = (folder / "runs").iterdir()
    events: list[dict[str, Any]] = list(read_events(place / "events.jsonl"))
    at = {kind: [event["time"] for event in events if event["event"] == kind] for kind in ("submitted", "run_finished")}
    rounds = [
        finished["time"] - started["time"]
        for started, finished in zip(
            (event for event in events if event["event"] == "round_started"),
            (event for event in events if event["event"] == "round_finished"),
            strict=True,
        )
    ]
    return {"run_s": at["run_finished"][0] - at["submitted"][0], "round_s": sum(rounds) / len(rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    values = {**TINY, "rounds": {**TINY["rounds"], "rounds": 1 if given.quick else given.rounds}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = answering_model(folder / "model", values, hidden=32)
        began = time.monotonic()
        with running_consortium(folder, values, model) as made:
            online = time.monotonic() - began
            messages = measure(made)
            done("wardround", "sites", "list", "coordinator", folder=folder)
        told = whole_run(folder)
    print(table(messages))
    means = {
        phase: sum(seen.seconds()[phase] for _, seen in messages) / len(messages) for phase in PHASES
    }  # fmt: skip
    figures = {"messages": len(messages), "online_s": online, **told, **{f"{name}_s": s for name, s in means.items()}}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
