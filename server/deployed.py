"""One study on a running coordinator and real sites: hand the bundle to Flower, follow the run to its end."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import UserError
from server.bundle import stage_bundle
from server.coordinator import CONNECTION, Coordinator, flower
from server.run_folder import RunFolder, read_events

POLL_S = 2.0
FINISHED = "finished:completed"


@dataclass(frozen=True)
class Submitted:
    """A run that Flower has accepted."""

    coordinator: Coordinator
    flower_run: str
    run: RunFolder

    def status(self) -> tuple[str, str]:
        """Flower's word for where the run is, and its details (the ServerApp's exception, when it failed)."""
        rows = flower(self.coordinator, "list", CONNECTION, "--run-id", self.flower_run)["runs"]
        return str(rows[0]["status"]), str(rows[0]["status-details"])

    def stop(self) -> None:
        flower(self.coordinator, "stop", self.flower_run, CONNECTION)


def submit(coordinator: Coordinator, run: RunFolder, model: Path | str) -> Submitted:
    """Start the run's study on the coordinator; a run that was begun goes on from its last finished round.

    Args:
        model: folder of the base model on the coordinator's machine (or hub name).

    Raises:
        UserError: no coordinator is running, or Flower refused the bundle.
    """
    study = run.study()
    arm = run.arm(study.seed, "federated")
    arm.mkdir(parents=True, exist_ok=True)
    values = {
        "study": str(run.path / "study.toml"),
        "run": run.path.name,
        "model": str(model),
        "arm-dir": str(arm),
        "events": str(run.events),
    }
    with tempfile.TemporaryDirectory(prefix="wardround-") as folder:
        stage = stage_bundle(Path(folder))
        settings = Path(folder) / "run.toml"
        settings.write_text(tomli_w.dumps(values), encoding="utf-8")
        answer = flower(coordinator, "run", str(stage), CONNECTION, "--run-config", str(settings))
    submitted = Submitted(coordinator, str(answer["run-id"]), run)
    run.log().write("submitted", flower_run=submitted.flower_run, bundle=answer["fab-hash"])
    return submitted


def events_after(run: RunFolder, seen: int) -> Iterator[dict[str, Any]]:
    for n, event in enumerate(read_events(run.events)):
        if n >= seen:
            yield event


def follow(submitted: Submitted, say: Callable[[dict[str, Any]], None]) -> None:
    """Wait for the run's end and pass on each new event of its log.

    Raises:
        UserError: the run failed or was stopped; finished rounds are kept.
    """
    seen = len(list(read_events(submitted.run.events)))
    while True:
        status, details = submitted.status()
        for event in events_after(submitted.run, seen):
            say(event)
            seen += 1
        if status == FINISHED:
            return
        if status.startswith("finished"):
            raise UserError(
                f"The run ended as {status.removeprefix('finished:')}: {details}",
                f"Finished rounds are kept; put it right, then `wardround run --resume {submitted.run.path}`.",
            )
        time.sleep(POLL_S)
