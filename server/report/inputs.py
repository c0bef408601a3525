"""Reads a run folder (docs/run_folder.md) as far as it goes: a run that is still going has a report too."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.strict import read_toml
from common.study import Study, parse_study
from server.run_folder import read_events, read_json

Event = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What lies in a run folder; `about`, `result` and `examples` are empty where the run has not come so far."""

    study: Study
    about: dict[str, Any]
    events: tuple[Event, ...]
    result: dict[str, Any]
    examples: list[dict[str, Any]]

    def of(self, event: str) -> list[Event]:
        return [e for e in self.events if e["event"] == event]


def read_record(folder: Path) -> RunRecord:
    """Read what is there.

    Raises:
        UserError: this is no run folder.
    """
    if not (folder / "study.toml").is_file():
        raise UserError(f"{folder}: this is no run folder (study.toml is missing).", "Give the folder of a run.")

    def read(name: str, otherwise: Any) -> Any:
        return read_json(folder / name) if (folder / name).exists() else otherwise

    return RunRecord(
        study=parse_study(read_toml(folder / "study.toml"), str(folder / "study.toml")),
        about=read("run.json", {}),
        events=each_once(read_events(folder / "events.jsonl")),
        result=read("result.json", {}),
        examples=read("examples.json", []),
    )


def each_once(events: Iterable[Event]) -> tuple[Event, ...]:
    """Of the events that a resumed run repeats, the last one."""
    kept: dict[tuple[Any, ...], Event] = {}
    for event in events:
        key = tuple(event.get(name) for name in ("event", "arm", "seed", "round", "site"))
        # Sites that train alone may each report a round of their own.
        key += tuple(sorted(event.get("sites", ())))
        kept.pop(key, None)
        kept[key] = event
    return tuple(kept.values())
