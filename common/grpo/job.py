"""One round's local training as a process of its own, or as several: `python -m common.grpo.job FOLDER`.

Started plainly it is one process; `accelerate launch` and `torchrun` start several. It talks through files:

    job.json                what to train, written by the starter
    model.safetensors       the round's model, written by the starter
    progress.json           the last step taken, its reward and when: the heartbeat
    trained.safetensors     the trained tensors
    result.json             what the training was like; written last, so its presence is success
    sampler/                a step's weights, for the vLLM server where there is one
    failed                  the exit code, of a user's mistake or where memory ran out

A job that was killed is started again and gives the same: what it starts from is not changed by it.
"""

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import polars as pl
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from common.errors import UserError
from common.grpo.local import LocalTrainer
from common.grpo.ranks import rank
from common.grpo.reference import save_whole
from common.grpo.vllm import Server
from common.models.policy import load_policy, load_trainable
from common.strict import Strict, checked
from common.study import Study

DONE, CRASHED, MISTAKE, OUT_OF_MEMORY = 0, 1, 2, 3
JOB, MODEL, PROGRESS, TRAINED, RESULT, FAILED, SAMPLER = (
    "job.json", "model.safetensors", "progress.json", "trained.safetensors", "result.json", "failed", "sampler",
)  # fmt: skip


class Job(Strict):
    study: Study
    model: str
    """Folder or hub name of the base model."""
    questions: str
    """Parquet file of a question frame."""
    stream: str
    first_step: int
    steps: int
    state_step: int
    state_dir: str
    proximal: float
    server: str | None = None
    """Socket file of the vLLM server that samples the completions."""


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def joined_processes() -> None:
    """Join the processes that a launcher started beside this one, each on a device of its own."""
    if "WORLD_SIZE" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        PartialState()
        return
    deepspeed_asked = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if deepspeed_asked:
        import deepspeed.ops

        # It would be compiled at the first start, which takes half a minute and a compiler; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # With cpu=True accelerate would leave DeepSpeed out without a word.
    PartialState(cpu=not deepspeed_asked, backend="gloo")


def work(folder: Path) -> None:
    joined_processes()
    job = checked(Job, json.loads((folder / JOB).read_text(encoding="utf-8")), str(folder / JOB))
    policy = load_policy(job.study, job.model)
    load_trainable(policy, load_file(folder / MODEL))
    server = None if job.server is None else Server(Path(job.server), folder / SAMPLER)
    trainer = LocalTrainer(policy, job.study, pl.read_parquet(job.questions), job.stream, server=server)

    def progress(step: int, reward: float) -> None:
        if rank() == 0:
            write_text(folder / PROGRESS, json.dumps({"step": step, "reward": reward, "time": time.time()}))

    result = trainer.run(job.first_step, job.steps, Path(job.state_dir), progress, job.state_step, job.proximal)
    trained = trainer.trained()
    if rank() == 0:
        save_whole(trained, folder / TRAINED)
        write_text(folder / RESULT, json.dumps(asdict(result)))


def memory_ran_out(error: BaseException) -> bool:
    """On a GPU torch has an exception for it, on a CPU only words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def main(folder: Path) -> int:
    """The exit code; a launcher of several processes hands on none but 0 and 1, so it lies in `failed` too."""
    try:
        work(folder)
    except UserError as error:
        print(f"{error.what}\n{error.remedy}", file=sys.stderr)
        code = MISTAKE
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        traceback.print_exc()
        code = OUT_OF_MEMORY
    else:
        return DONE
    write_text(folder / FAILED, str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
