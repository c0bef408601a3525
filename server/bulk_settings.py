"""Whether a coordinator has a bulk channel and for what: `coordinator/bulk.toml`, written by `wardround serve`."""

from pathlib import Path

import tomli_w
from pydantic import Field

from common.strict import Strict, checked, read_toml
from server.coordinator import Coordinator


class BulkSettings(Strict):
    port: int = Field(ge=1, le=65535)
    above_mb: float = Field(default=250.0, ge=0)
    """Payloads above so many million bytes take the channel, others Flower's messages."""
    mb_per_s: float | None = Field(default=None, gt=0)
    """Most that one site moves, in million bytes a second; no limit unless given."""
    round_limit_s: float | None = Field(default=None, gt=0)
    """How old a run's last finished round may be before health says so; see server/health.py."""


def place(coordinator: Coordinator) -> Path:
    return coordinator.folder / "bulk.toml"


def write_bulk_settings(coordinator: Coordinator, settings: BulkSettings | None) -> None:
    """Runs that begin from now on use the channel; without settings there is none."""
    if settings is None:
        place(coordinator).unlink(missing_ok=True)
    else:
        place(coordinator).write_text(tomli_w.dumps(settings.model_dump(exclude_none=True)), encoding="utf-8")


def read_bulk_settings(coordinator: Coordinator) -> BulkSettings | None:
    """None where the coordinator has no channel."""
    path = place(coordinator)
    return checked(BulkSettings, read_toml(path), str(path)) if path.exists() else None
