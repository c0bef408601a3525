"""The command that starts a job."""

import json
import sys
from pathlib import Path

import pytest

from client.site import Settings
from common.errors import UserError
from common.launcher import command
from common.strict import checked


def test_the_placeholders_are_filled_in(tmp_path: Path) -> None:
    words = command("{python} -m accelerate --config_file {zero3} 'a b' {folder}", tmp_path)
    assert words == [sys.executable, "-m", "accelerate", "--config_file", str(tmp_path / "zero3.json"), "a b",
                     str(tmp_path)]  # fmt: skip
    for stage in (2, 3):
        written = json.loads((tmp_path / f"zero{stage}.json").read_text())
        assert written["distributed_type"] == "DEEPSPEED"
        assert written["deepspeed_config"]["zero_stage"] == stage


@pytest.mark.parametrize(
    ("launcher", "told"),
    [("python -m common.grpo.job", "does not name the job's folder"), ("python 'a {folder}", "cannot be read")],
)
def test_a_command_that_cannot_work_is_refused_when_read(launcher: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        checked(Settings, {"launcher": launcher}, "site.toml [client]")


def test_without_a_launcher_training_stays_in_the_process() -> None:
    assert checked(Settings, {}, "site.toml [client]").launcher is None
