"""What a study needs of GPUs: memory by its parts, and time. Estimates from shapes; nothing is run."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from common.grpo.head import CHUNK
from common.grpo.head import KEPT_AT_MOST as LOGITS_KEPT
from common.grpo.logps import KEPT_AT_MOST, expanded_bytes
from common.models.shape import Shape
from common.study import Study

Sharding = Literal["none", "ZeRO-2", "ZeRO-3"]
SHARDINGS: tuple[Sharding, ...] = ("none", "ZeRO-2", "ZeRO-3")


@dataclass(frozen=True)
class Gpu:
    memory: float
    """GB."""
    teraflops: float
    """bfloat16, dense."""
    bandwidth: float
    """GB/s of its memory."""


GPUS = {
    "a100-40gb": Gpu(40, 312, 1555),
    "a100-80gb": Gpu(80, 312, 2039),
    "h100-80gb": Gpu(80, 989, 3350),
    "h200-141gb": Gpu(141, 989, 4800),
}
"""SXM models, from the vendor's data sheets."""


@dataclass(frozen=True)
class Load:
    """What one GPU has of a step, at the longest prompts and completions that the study allows."""

    groups: int
    """Whole groups: more GPUs than prompts stand idle."""
    at_once: int
    """Groups in memory together in learning."""
    rows: int
    """Completions of a group."""
    prompt: int
    completion: int

    def tokens(self, groups: int) -> int:
        return groups * (self.prompt + self.rows * self.completion)


def load_of(study: Study, gpus: int) -> Load:
    grpo = study.grpo
    groups = ceil(grpo.prompts_per_step / gpus)
    at_once = min(groups, grpo.groups_at_once or groups)
    return Load(groups, at_once, grpo.group_size, grpo.max_prompt_tokens, grpo.max_completion_tokens)


def route_of(study: Study, shape: Shape, load: Load) -> str:
    """The learning route: the study's, or what `auto` takes for a batch of this size."""
    if study.grpo.prefix_route != "auto":
        return study.grpo.prefix_route
    return "packed" if kept(shape, load, shared=True) > KEPT_AT_MOST else "expanded"


def kept(shape: Shape, load: Load, shared: bool) -> int:
    """Bytes that layers which are not computed again keep."""
    rows = load.at_once * load.rows
    prompts = load.at_once if shared else rows
    return expanded_bytes(shape.model, prompts, load.prompt, rows, load.completion)


def activations(study: Study, shape: Shape, load: Load) -> int:
    """Bytes that learning keeps for the backward pass, logits apart."""
    config, tokens = shape.model.config, load.tokens(load.at_once)
    route = route_of(study, shape, load)
    if route != "packed":
        return kept(shape, load, shared=route == "expanded")
    layers = config.num_hidden_layers
    inputs = layers * config.hidden_size
    # The layer that is computed again keeps what `expanded_bytes` counts, for itself alone.
    return int(tokens * (inputs + 2 * shape.written / layers) * shape.model.dtype.itemsize)


def cache(study: Study, shape: Shape, load: Load) -> int:
    """Bytes of keys and values while all of a GPU's groups are generated."""
    shared = route_of(study, shape, load) == "packed"
    rows = load.groups * load.rows
    tokens = load.tokens(load.groups) if shared else rows * (load.prompt + load.completion)
    return tokens * shape.cached * shape.model.dtype.itemsize


def optimiser_bytes(study: Study, shape: Shape) -> int:
    """Two moments: float32, or 8 bits with one float32 scale for 256."""
    each = 8 if study.grpo.optimizer == "adamw" else 2 + 8 / 256
    return int(each * shape.trainable)


def memory(study: Study, shape: Shape, gpus: int, sharding: Sharding) -> dict[str, int]:
    """Bytes of each part on one GPU. `learning` and `generating` do not stand together; `peak` has the larger.

    DeepSpeed's own buffers and what the allocator wastes are not in it.
    """
    load, all_weights = load_of(study, gpus), study.model.trainable == "all"
    whole = gpus if sharding == "ZeRO-3" else 1
    states = 1 if sharding == "none" else gpus
    completions = load.at_once * load.rows * load.completion
    logits = completions * shape.model.config.vocab_size
    parts = {
        "weights": shape.base_bytes // whole + shape.adapter_bytes,
        "gradients": 4 * shape.trainable // states,
        "optimiser": optimiser_bytes(study, shape) // states,
        "float32 masters": 4 * shape.trainable // states if all_weights and study.model.dtype == "bfloat16" else 0,
        "reference": shape.base_bytes // whole if all_weights and study.grpo.beta else 0,
    }
    fixed = sum(parts.values())
    # Logits, their log-softmax, its exponential and the gradient stand together.
    parts["logits"] = 4 * 4 * min(logits, max(CHUNK, LOGITS_KEPT))
    parts["learning"] = activations(study, shape, load)
    parts["generating"] = cache(study, shape, load)
    parts["peak"] = fixed + max(parts["learning"] + parts["logits"], parts["generating"])
    return parts


def step_seconds(study: Study, shape: Shape, gpu: Gpu, gpus: int, utilisation: float) -> dict[str, float]:
    """Expected seconds of one step at full lengths, by phase; communication is not in it.

    Learning counts 2 operations a parameter and token forward and 4 backward, 2 more where layers are computed again
    and 2 for a reference, and attention by its context. Decoding reads the weights and the cache for each token.

    Args:
        utilisation: share of the GPU's operations a second that is reached, and of its bandwidth.
    """
    load, config = load_of(study, gpus), shape.model.config
    passes = 3 + (route_of(study, shape, load) == "packed") + bool(study.grpo.beta)
    attended = 4 * config.num_hidden_layers * config.hidden_size
    prompts = load.groups * load.prompt * (2 * shape.parameters + attended * load.prompt / 2)
    answers = load.groups * load.rows * load.completion
    answers_cost = answers * (2 * shape.parameters + attended * (load.prompt + load.completion / 2))
    rate = utilisation * gpu.teraflops * 1e12
    read = load.completion * (shape.base_bytes + cache(study, shape, load))
    return {
        "generating": prompts / rate + max(answers_cost / rate, read / (utilisation * gpu.bandwidth * 1e9)),
        "learning": passes * (prompts + answers_cost) / rate,
    }
