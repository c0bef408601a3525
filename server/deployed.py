"""One study on a running coordinator and real sites: hand the bundle to Flower, follow the run to its end."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import UserError
from common.models.transfer import folder_sha256
from server.bundle import CLIENT_APP, app_spec, bundle_sha256, stage_bundle
from server.coordinator import CONNECTION, Coordinator, flower, run_states
from server.jobs import base_model
from server.review import published
from server.run_folder import RunFolder, read_events, write_json

POLL_S = 1.0
ASK_S = 5.0
"""How often Flower is asked how a run goes; what happens in it stands in the run's own log. From the last round on,
when its end is near, every `LAST_S`."""
LAST_S = 1.0
FINISHED = "finished:completed"
AWAY_S = 300.0
"""A SuperLink that ended is started again by `wardround serve`, and its runs go on: for so long it may be away."""


@dataclass(frozen=True)
class Submitted:
    """A run that Flower has accepted."""

    coordinator: Coordinator
    flower_run: str
    run: RunFolder

    def stop(self) -> None:
        flower(self.coordinator, "stop", self.flower_run, CONNECTION)


def ready_model(run: RunFolder, given: Path | None, cache: Path) -> Path:
    """The base model that the run has, or is given now: a folder, `model.base`, or the built-in one, built.

    Raises:
        UserError: it is not the one that the run began with, or the built-in one cannot be built here.
    """
    study = run.study()
    note = run.seed(study.seed) / "base.json"
    if not note.exists() and given is not None:
        if not given.is_dir():
            raise UserError(f"--model {given}: this is not a folder.", "Give the folder of a model.")
        write_json(note, {"folder": str(given.resolve()), "sha256": folder_sha256(given)})
    elif not note.exists():
        from server.arm_jobs import prepare_model  # which trains

        prepare_model(run, study, cache, run.log())
    return base_model(run, study.seed)


def run_config(coordinator: Coordinator, run: RunFolder, model: Path | str) -> dict[str, str]:
    """What `server/app.py` is told about a run."""
    study = run.study()
    return {
        "study": str(run.path / "study.toml"),
        "run": run.path.name,
        "model": str(model),
        "arm-dir": str(run.arm(study.seed, "federated")),
        "events": str(run.events),
        "coordinator": str(coordinator.folder),
        "played-keys": "",
    }


def start(coordinator: Coordinator, values: dict[str, str], *options: str, client_app: str = CLIENT_APP) -> str:
    """Hand the code that runs here to Flower as an unsigned bundle, with its run config; returns Flower's run id.

    Raises:
        UserError: no coordinator is running, or Flower refused the bundle.
    """
    with tempfile.TemporaryDirectory(prefix="wardround-") as folder:
        return start_app(coordinator, str(stage_bundle(Path(folder), client_app)), values, *options)


def start_app(coordinator: Coordinator, app: str, values: dict[str, str], *options: str) -> str:
    """`start`, with an app as `flwr run` knows it: a folder, or the name of one that a hub has."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as settings:
        settings.write(tomli_w.dumps(values).encode())
        settings.flush()
        return str(flower(coordinator, "run", app, CONNECTION, "--run-config", settings.name, *options)["run-id"])


def status(coordinator: Coordinator, flower_run: str) -> tuple[str, str]:
    """Flower's word for where a run is, and its details (the ServerApp's exception, when it failed)."""
    return run_states(coordinator, flower_run)[flower_run]


def status_in_time(coordinator: Coordinator, flower_run: str) -> tuple[str, str]:
    """`status`, from a SuperLink that may be away for a while.

    Raises:
        UserError: it stays away.
    """
    end = time.monotonic() + AWAY_S
    while True:
        try:
            return status(coordinator, flower_run)
        except UserError:
            if time.monotonic() >= end:
                raise
        time.sleep(POLL_S)


def stop_earlier(coordinator: Coordinator, run: RunFolder) -> list[str]:
    """Stop what of this run still runs on the coordinator; returns Flower's ids of it.

    A run of Flower's goes on without the command that submitted it, which may have been killed. Two apps that lead the
    same rounds would write over each other's files.

    Raises:
        UserError: no coordinator is running.
    """
    submitted = {event["flower_run"] for event in read_events(run.events) if event["event"] == "submitted"}
    if not submitted:
        return []
    living = [number for number, (word, _) in run_states(coordinator).items() if not word.startswith("finished")]
    stopped = sorted(submitted.intersection(living))
    for flower_run in stopped:
        Submitted(coordinator, flower_run, run).stop()
        run.log().write("stopped", flower_run=flower_run)
    return stopped


def submit(coordinator: Coordinator, run: RunFolder, model: Path | str) -> Submitted:
    """Start the run's study on the coordinator; a run that was begun goes on from its last finished round.

    The sites get the coordinator's signed bundle, or, where it has none, an unsigned one of the code that runs here.

    Args:
        model: folder of the base model on the coordinator's machine (or hub name).

    Raises:
        UserError: no coordinator is running, Flower refused the bundle, or the signed one is of other code.
    """
    values = run_config(coordinator, run, model)
    bundle = published(coordinator)
    number = start(coordinator, values) if bundle is None else start_app(coordinator, app_spec(), values)
    submitted = Submitted(coordinator, number, run)
    sha256 = None if bundle is None else bundle_sha256(bundle.read_bytes())
    run.log().write("submitted", flower_run=submitted.flower_run, signed_bundle=sha256)
    return submitted


def events_after(run: RunFolder, seen: int) -> Iterator[dict[str, Any]]:
    for n, event in enumerate(read_events(run.events)):
        if n >= seen:
            yield event


def follow(submitted: Submitted, say: Callable[[dict[str, Any]], None]) -> None:
    """Wait for the run's end and pass on each new event of its log.

    Raises:
        UserError: the run failed or was stopped, or the SuperLink stays away; finished rounds are kept.
    """
    seen, due, pause = len(list(read_events(submitted.run.events))), 0.0, ASK_S
    while True:
        asked = time.monotonic() >= due
        if asked:
            word, details = status_in_time(submitted.coordinator, submitted.flower_run)
            due = time.monotonic() + pause
        for event in events_after(submitted.run, seen):
            say(event)
            seen += 1
            if event["event"] == "round_finished" and event["round"] == event["rounds"]:
                due, pause = 0.0, LAST_S
        if asked and word == FINISHED:
            return
        if asked and word.startswith("finished"):
            raise UserError(
                f"The run ended as {word.removeprefix('finished:')}: {details}",
                f"Finished rounds are kept; put it right, then `wardround run --resume {submitted.run.path}`.",
            )
        time.sleep(POLL_S)
