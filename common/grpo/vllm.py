"""Completions from a vLLM server beside the training job: its prefix cache reads a prompt once for its group.

vLLM's pins exclude ours, so it is a program of another environment (Kwon et al. 2023, arXiv 2309.06180). It is reached
by a socket file, which nobody else on the machine can open, and takes each step's weights from a folder.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from shlex import split
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from common.errors import UserError
from common.grpo.generation import Completion
from common.grpo.prefix import causal_model
from common.grpo.ranks import everyones, rank
from common.grpo.zero import gathered
from common.launcher import BASE
from common.models.adapters import ADAPTER, FACTOR_A, FACTOR_B, FROZEN
from common.processes import Process
from common.study import Study

NAME = "policy"
LOOK_S = 0.5
AT_ONCE = 512
"""Requests under way from one process; the server has its own limit on what it computes together."""
ENVIRONMENT = {
    # What reloads weights stands among the server's development calls.
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def command(vllm: str, base: str, study: Study, place: Path) -> list[str]:
    """The words that serve the folder or hub name `base` at the socket file `place`.

    Log-probabilities come after the temperature, and nothing but the study's settings shapes the sampling.
    """
    grpo = study.grpo
    options = {
        "--uds": str(place),
        "--served-model-name": NAME,
        "--dtype": study.model.dtype,
        "--max-model-len": str(grpo.max_prompt_tokens + grpo.max_completion_tokens),
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--seed": "0",
    }
    words = [base if word == BASE else word for word in split(vllm)]
    return [*words, *(word for option in options.items() for word in option)]


@contextmanager
def serving(vllm: str, base: str, study: Study, log: Path) -> Iterator[tuple[Process, Path]]:
    """A server that starts, and the socket file where it will answer; it ends with the block.

    Raises:
        UserError: the program is not there.
    """
    # The job's own code and environment are not the server's.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    # A socket file's path must be short, and only we may open it.
    with TemporaryDirectory(prefix="wardround-") as folder:
        words = command(vllm, base, study, Path(folder) / "vllm")
        if which(words[0], path=variables.get("PATH")) is None:
            raise UserError(f"vllm: there is no program {words[0]}.", "Give its whole path.")
        with Process(words, log, variables, log.parent) as process:
            yield process, Path(folder) / "vllm"


class SocketFile(HTTPConnection):
    """HTTP over a Unix domain socket."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost")
        self.place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.place))


class VllmFailed(Exception):
    """The server answered with an error; its log says more."""


@dataclass(frozen=True)
class Server:
    """A running server, from one of the processes that train together.

    Args:
        place: its socket file; weights: the folder that a step's weights are written to.
    """

    place: Path
    weights: Path

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        connection = SocketFile(self.place)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            told = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise VllmFailed(f"{path}: status {answer.status}: {told[:500]!r}")
        return told

    def wait(self) -> None:
        """Until it answers. Who started it ends this process where it never will."""
        while True:
            try:
                self.call("GET", "/health")
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(LOOK_S)
            else:
                return

    def load(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Let the server sample from `model` as it is now. All processes call it together."""
        weights = whole_weights(model, accelerator)
        if rank() == 0:
            self.wait()
            causal_model(model).save_pretrained(self.weights, state_dict=weights)
            self.call("POST", "/collective_rpc",
                      {"method": "reload_weights", "kwargs": {"weights_path": str(self.weights)}})  # fmt: skip
            # Keys and values of the same prompts under the weights before.
            self.call("POST", "/reset_prefix_cache")
        accelerator.wait_for_everyone()

    def sample(
        self, prompts: list[list[int]], counts: list[int], max_tokens: int, temperature: float, eos: list[int]
    ) -> list[Completion]:
        """`counts[n]` completions of prompt n, a prompt's together, the end token included where one was drawn.

        Seeds come from torch's generator, one a row, as if one process asked for all processes' rows. So a step that is
        computed again asks for the same; what comes differs where the server's batches, so its rounding, differ.
        """
        rows = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        everyone = everyones([len(rows)])
        before = sum(everyone[: rank()])
        seeds = torch.randint(2**62, (sum(everyone),))[before : before + len(rows)].tolist()

        def ask(prompt: list[int], seed: int) -> Completion:
            body = {
                "model": NAME,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
                "stop_token_ids": eos,
                # The model's own ends may be more than those that the trainer knows.
                "ignore_eos": True,
                "logprobs": 0,
                "return_token_ids": True,
            }
            choice = json.loads(self.call("POST", "/v1/completions", body))["choices"][0]
            return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(ask, rows, seeds))


@torch.no_grad()
def whole_weights(model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
    """Every weight, LoRA's product added, on the first process's CPU; empty on the others.

    Where DeepSpeed shares the weights out, one layer at a time is whole.
    """
    inner = causal_model(model)
    adapted: dict[str, Any] = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    weights = {}
    for name, parameter in inner.named_parameters():
        if name.endswith((FACTOR_A, FACTOR_B)):
            continue
        layer = adapted.get(name.removesuffix(FROZEN)) if name.endswith(FROZEN) else None
        factors = [] if layer is None else [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
        with gathered(accelerator, [parameter, *factors]):
            if rank() == 0:
                value = parameter if layer is None else parameter + layer.get_delta_weight(ADAPTER)
                weights[name.replace(".base_layer.", ".")] = value.to("cpu", parameter.dtype, copy=True)
    return weights
