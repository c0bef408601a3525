"""The command that starts a job."""

import json
import sys
from pathlib import Path

import pytest

from client.site import Settings
from common.errors import UserError
from common.launcher import command
from common.strict import checked
from common.study import Simulation


def test_the_placeholders_are_filled_in(tmp_path: Path) -> None:
    words = command("{python} -m accelerate --config_file {zero3} 'a b' {folder}", tmp_path)
    assert words == [sys.executable, "-m", "accelerate", "--config_file", str(tmp_path / "zero3.json"), "a b",
                     str(tmp_path)]  # fmt: skip
    for stage in (2, 3):
        written = json.loads((tmp_path / f"zero{stage}.json").read_text())
        assert written["distributed_type"] == "DEEPSPEED"
        assert written["deepspeed_config"]["zero_stage"] == stage


JOB = "python -m common.grpo.job {folder}"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"launcher": "python -m common.grpo.job"}, "does not name the job's folder"),
        ({"launcher": "python 'a {folder}"}, "cannot be read"),
        ({"launcher": JOB, "vllm": "vllm serve"}, "does not name the model"),
        ({"launcher": JOB, "vllm": "vllm serve {model} --max_model_len=20"}, "--max-model-len follows from the study"),
        ({"launcher": JOB, "vllm": "vllm serve {model} --uds s"}, "--uds follows from the study"),
        ({"vllm": "vllm serve {model}"}, "there is no launcher"),
    ],
)
def test_a_command_that_cannot_work_is_refused_when_read(values: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        checked(Settings, values, "site.toml [client]")
    with pytest.raises(UserError, match=told):
        checked(Simulation, values, "study.toml")


def test_without_a_launcher_training_stays_in_the_process() -> None:
    assert checked(Settings, {}, "site.toml [client]").launcher is None
