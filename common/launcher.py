"""How this machine starts local training: in its own process, or through a command as a job of its own; and a vLLM
server beside the job, which samples its completions.

Settings of a machine, not of a study: they say which devices there are, not what is computed.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, model_validator

from common.strict import Strict

FOLDER = "{folder}"
BASE = "{model}"
ZERO_STAGES = {"{zero2}": 2, "{zero3}": 3}


FROM_THE_STUDY = ("--dtype", "--generation-config", "--logprobs-mode", "--max-model-len", "--seed",
                  "--served-model-name", "--uds")  # fmt: skip
"""vLLM's options that are ours to give (common/grpo/vllm.py): they decide numbers, or how the server is reached."""


def words_of(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"the command cannot be read ({error}); close the quotes") from None


def fits(launcher: str) -> str:
    if FOLDER not in words_of(launcher):
        raise ValueError(
            "the command does not name the job's folder; end it with: -m common.grpo.job {folder}",
        )
    return launcher


def serves(vllm: str) -> str:
    words = words_of(vllm)
    if BASE not in words:
        raise ValueError("the command does not name the model; give for example: /opt/vllm/bin/vllm serve {model}")
    ours = [name for name in FROM_THE_STUDY if any(word.split("=")[0].replace("_", "-") == name for word in words)]
    if ours:
        raise ValueError(f"{ours[0]} follows from the study; take it out of the command")
    return vllm


Launcher = Annotated[str, AfterValidator(fits)]
"""A command line. `{folder}` is the job's folder, `{python}` the interpreter that runs here, `{zero2}` and `{zero3}`
accelerate's configuration of DeepSpeed's ZeRO stage 2 and 3."""
Vllm = Annotated[str, AfterValidator(serves)]
"""A command line that starts a vLLM server on its own device; `{model}` is the base model."""


class TrainingJobs(Strict):
    """How training is started on a machine: part of a site's `[client]` table and of a study's `[simulation]`."""

    launcher: Launcher | None = None
    """The command that starts training as a job of its own; in this process unless given."""
    vllm: Vllm | None = None
    """The command that starts a vLLM server beside each job, to sample for it; the job samples unless given."""

    @model_validator(mode="after")
    def served_jobs(self) -> "TrainingJobs":
        if self.vllm is not None and self.launcher is None:
            raise ValueError(
                "vllm serves a training job, but there is no launcher; "
                "add launcher = '{python} -m common.grpo.job {folder}', or remove vllm"
            )
        return self


def accelerate_config(stage: int) -> dict[str, object]:
    """What `accelerate launch --config_file` reads; how many processes is said on the command line.

    What decides numbers (clipping, precision, optimiser) comes from the study, so it is not here.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "zero_stage": stage,
            "gradient_accumulation_steps": "auto",
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "zero3_init_flag": False,
        },
        "mixed_precision": "no",
        "machine_rank": 0,
        "num_machines": 1,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
    }


def command(launcher: str, folder: Path) -> list[str]:
    """The words of the command that trains what `folder` asks for.

    The configurations are written into the folder: a bundle that Flower sends holds Python modules alone.
    """
    words = {FOLDER: str(folder), "{python}": sys.executable}
    for name, stage in ZERO_STAGES.items():
        words[name] = str(folder / f"zero{stage}.json")
        (folder / f"zero{stage}.json").write_text(json.dumps(accelerate_config(stage), indent=1), encoding="utf-8")
    return [words.get(word, word) for word in shlex.split(launcher)]
