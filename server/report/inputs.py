"""Reads a run folder (docs/run_folder.md) as far as it goes: a run that is still going has a report too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.study import Study, parse_study, read_toml

Event = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What lies in a run folder; `result` and `examples` are empty where the run has not come so far."""

    path: Path
    study: Study
    events: tuple[Event, ...]
    result: dict[str, Any]
    examples: list[dict[str, Any]]

    def of(self, event: str) -> list[Event]:
        return [e for e in self.events if e["event"] == event]


def read_run_folder(path: Path) -> RunFolder:
    """Read what is there.

    Raises:
        UserError: no run folder, or a file in it that cannot be parsed.
    """
    if not (path / "study.toml").is_file():
        raise UserError(f"{path}: this is no run folder (study.toml is missing).", "Give the folder of a run.")
    return RunFolder(
        path=path,
        study=parse_study(read_toml(path / "study.toml"), str(path / "study.toml")),
        events=read_events(path / "events.jsonl"),
        result=read_json(path / "result.json", {}),
        examples=read_json(path / "examples.json", []),
    )


def read_json(path: Path, empty: Any) -> Any:
    if not path.exists():
        return empty
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {error.lineno}).", "Let the run write it again.") from None


def read_events(path: Path) -> tuple[Event, ...]:
    """Events in order, each once: the last of those that a resumed run repeats, without a line cut short by a kill."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    events: dict[tuple[Any, ...], Event] = {}
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path}: line {number} is not JSON.", "Remove that line.") from None
        key = tuple(event.get(name) for name in ("event", "arm", "seed", "round", "site"))
        events.pop(key, None)
        events[key] = event
    return tuple(events.values())
