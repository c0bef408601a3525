"""An arm's finished rounds, and what arrived for the round under way.

A round is finished when its `round-0007.json` has its name; it is written last.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.lock import Held, only_one
from common.update.tensors import State, sha256
from server.run_folder import read_json, write_atomic, write_json

LEAVING_S = 120.0
"""How long a coordinator's app that was stopped may take to end: it hears of it by its next message, or by Flower's
heartbeat after half a minute, and one tensor of a fold may be under way."""


def write_state(path: Path, state: State) -> None:
    write_atomic(path, lambda part: save_file({n: t.contiguous() for n, t in state.items()}, part))


def read_state(path: Path) -> State:
    return load_file(path)


@dataclass(frozen=True)
class Checkpoint:
    """A finished round: `round` 0 is the start. `step` is the optimiser steps a site has taken by then."""

    round: int
    step: int
    model: State
    outer: State
    notes: dict[str, Any]


def tag(number: int) -> str:
    """How a round's files begin."""
    return f"round-{number:04d}"


@dataclass(frozen=True)
class RoundStore:
    """Checkpoints of one arm, and what arrived for the round under way."""

    folder: Path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lead this arm's rounds, as soon as no other process does.

        Raises:
            UserError: another goes on leading them.
        """
        try:
            with only_one(self.folder / ".lock", LEAVING_S):
                yield
        except Held:
            raise UserError(
                f"{self.folder}: another coordinator's app leads the rounds of this run.",
                "Stop it with `flwr stop`, or stop `wardround serve`; then go on with `wardround run --resume`.",
            ) from None

    def save(self, checkpoint: Checkpoint) -> None:
        """Make a round durable; the JSON file, written last, is what makes it count."""
        name = tag(checkpoint.round)
        write_state(self.folder / f"{name}.safetensors", checkpoint.model)
        write_state(self.folder / f"{name}.outer.safetensors", checkpoint.outer)
        entry = {
            "round": checkpoint.round,
            "step": checkpoint.step,
            "model_sha256": sha256(checkpoint.model),
            "notes": checkpoint.notes,
        }
        write_json(self.folder / f"{name}.json", entry)

    def finished(self) -> list[int]:
        return sorted(int(p.stem.removeprefix("round-")) for p in self.folder.glob("round-[0-9]*.json"))

    def kept(self) -> list[int]:
        """The finished rounds whose models are still here."""
        return [number for number in self.finished() if (self.folder / f"{tag(number)}.safetensors").exists()]

    def prune(self, keep: int | None) -> None:
        """Delete the tensors of finished rounds but the first (the base model) and the last `keep`; None keeps all."""
        if keep is None:
            return
        for number in self.kept()[1:-keep]:
            for path in self.folder.glob(f"{tag(number)}.*safetensors"):
                path.unlink()

    def load(self, number: int) -> Checkpoint:
        """Read a finished round whose model is here.

        Raises:
            UserError: the model's bytes are not those that were written.
        """
        name = tag(number)
        entry = read_json(self.folder / f"{name}.json")
        model = read_state(self.folder / f"{name}.safetensors")
        if sha256(model) != entry["model_sha256"]:
            raise UserError(
                f"{self.folder / name}.safetensors: the bytes are not those that were written.",
                f"Delete the files of this round ({name}.*) to go on from the one before.",
            )
        outer = read_state(self.folder / f"{name}.outer.safetensors")
        return Checkpoint(entry["round"], entry["step"], model, outer, entry["notes"])

    def latest(self) -> Checkpoint | None:
        kept = self.kept()
        return self.load(kept[-1]) if kept else None

    def received(self, number: int, site: str) -> Path:
        """Where a site's decoded model waits until its round is folded."""
        return self.folder / f"received-{number:04d}" / f"{site}.safetensors"

    def drop_received(self, number: int) -> None:
        shutil.rmtree(self.folder / f"received-{number:04d}", ignore_errors=True)
