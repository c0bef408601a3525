"""What a study needs of GPUs: memory by its parts, and time. Estimates from shapes; nothing is run."""

from dataclasses import dataclass
from typing import Literal

from common.grpo.head import CHUNK
from common.grpo.head import KEPT_AT_MOST as LOGITS_KEPT
from common.grpo.logps import KEPT_AT_MOST, expanded_bytes
from common.grpo.ranks import by_group, even_parts, share
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
class Batch:
    """Completions and the prompts that are computed for them, at the longest that the study allows."""

    prompts: int
    rows: int
    """Completions."""
    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        return self.prompts * self.prompt + self.rows * self.completion


@dataclass(frozen=True)
class Load:
    """What the busiest GPU has of a step."""

    share: Batch
    at_once: Batch
    """In memory together in learning."""


def load_of(study: Study, gpus: int) -> Load:
    grpo = study.grpo
    group, rows = grpo.group_size, grpo.prompts_per_step * grpo.group_size
    at_most = (grpo.groups_at_once or grpo.prompts_per_step) * group
    shares = [share(rows, number, gpus) for number in range(min(gpus, rows))]

    def largest(batches: list[range]) -> Batch:
        prompts = max(len(by_group(batch, group)) for batch in batches)
        return Batch(prompts, max(map(len, batches)), grpo.max_prompt_tokens, grpo.max_completion_tokens)

    return Load(largest(shares), largest([part for mine in shares for part in in_parts(mine, at_most)]))


def in_parts(rows: range, at_most: int) -> list[range]:
    size = len(rows) // even_parts(len(rows), at_most)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def served(study: Study) -> bool:
    """Whether a vLLM server samples, on one GPU beside those that train."""
    return study.simulation.vllm is not None


def sampling_load(study: Study, gpus: int) -> Load:
    return load_of(study, 1 if served(study) else gpus)


def route_of(study: Study, shape: Shape, load: Load) -> str:
    """The learning route: the study's, or what `auto` takes for a batch of this size."""
    if study.grpo.prefix_route != "auto":
        return study.grpo.prefix_route
    return "packed" if kept(shape, load.at_once, shared=True) > KEPT_AT_MOST else "expanded"


def kept(shape: Shape, batch: Batch, shared: bool) -> int:
    """Bytes that layers which are not computed again keep."""
    prompts = batch.prompts if shared else batch.rows
    return expanded_bytes(shape.model, prompts, batch.prompt, batch.rows, batch.completion)


def activations(study: Study, shape: Shape, load: Load) -> int:
    """Bytes that learning keeps for the backward pass, logits apart."""
    config, tokens = shape.model.config, load.at_once.tokens
    route = route_of(study, shape, load)
    if route != "packed":
        return kept(shape, load.at_once, shared=route == "expanded")
    layers = config.num_hidden_layers
    inputs = layers * config.hidden_size
    # The layer that is computed again keeps what `expanded_bytes` counts, for itself alone.
    return int(tokens * (inputs + 2 * shape.written / layers) * shape.model.dtype.itemsize)


def cache(study: Study, shape: Shape, load: Load) -> int:
    """Bytes of keys and values while all of a GPU's rows are generated; vLLM keeps a prompt's once."""
    batch = load.share
    shared = served(study) or route_of(study, shape, load) == "packed"
    tokens = batch.tokens if shared else batch.rows * (batch.prompt + batch.completion)
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
    logits = load.at_once.rows * load.at_once.completion * shape.model.config.vocab_size
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
    # Every weight stands on every GPU meanwhile (`ZeroSteps.whole`).
    gathered = shape.base_bytes - shape.base_bytes // whole
    parts["generating"] = 0 if served(study) else cache(study, shape, load) + gathered
    parts["peak"] = fixed + max(parts["learning"] + parts["logits"], parts["generating"])
    return parts


def step_seconds(study: Study, shape: Shape, gpu: Gpu, gpus: int, utilisation: float) -> dict[str, float]:
    """Expected seconds of one step at full lengths, by phase; communication is not in it.

    Learning counts 2 operations a parameter and token forward and 4 backward, 2 more where layers are computed again
    and 2 for a reference, and attention by its context. Decoding reads the weights and the cache for each token.

    Args:
        utilisation: share of the GPU's operations a second that is reached, and of its bandwidth.
    """
    load, sampling = load_of(study, gpus), sampling_load(study, gpus)
    # The importance correction scores what vLLM drew.
    passes = 3 + (route_of(study, shape, load) == "packed") + bool(study.grpo.beta) + served(study)
    rate = utilisation * gpu.teraflops * 1e12
    prompts, answers = operations(shape, sampling.share)
    read = sampling.share.completion * (shape.base_bytes + cache(study, shape, sampling))
    return {
        "generating": prompts / rate + max(answers / rate, read / (utilisation * gpu.bandwidth * 1e9)),
        "learning": passes * sum(operations(shape, load.share)) / rate,
    }


def operations(shape: Shape, batch: Batch) -> tuple[float, float]:
    """Of one pass forward, through the prompts and through the completions."""
    config = shape.model.config
    attended = 4 * config.num_hidden_layers * config.hidden_size
    prompts = batch.prompts * batch.prompt * (2 * shape.parameters + attended * batch.prompt / 2)
    answers = batch.rows * batch.completion
    return prompts, answers * (2 * shape.parameters + attended * (batch.prompt + batch.completion / 2))
