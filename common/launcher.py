"""How this machine starts local training: in its own process, or through a command as a job of its own.

A setting of a machine, not of a study: it says how many devices there are, not what is computed.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

FOLDER = "{folder}"
ZERO_STAGES = {"{zero2}": 2, "{zero3}": 3}


def fits(launcher: str) -> str:
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise ValueError(f"the command cannot be read ({error}); close the quotes") from None
    if FOLDER not in words:
        raise ValueError(
            "the command does not name the job's folder; end it with: -m common.grpo.job {folder}",
        )
    return launcher


Launcher = Annotated[str, AfterValidator(fits)]
"""A command line. `{folder}` is the job's folder, `{python}` the interpreter that runs here, `{zero2}` and `{zero3}`
accelerate's configuration of DeepSpeed's ZeRO stage 2 and 3."""


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
