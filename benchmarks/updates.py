"""How much smaller an update is than the weights it changes, and how fast it is made.

All parameters: a randomly initialised model of Phi-3's architecture, float32 masters and bfloat16 weights, AdamW at
lr 1e-6 on random tokens; `sparse-bf16` against the bfloat16 model. The bound is the entropy of the differences in
units in the last place, each weight on its own and all alike; a code that looks at the weight's exponent can go
below it. Later rounds: two sites on tokens of their own, whose mean is the next model; masters' residuals and AdamW's
state stay at the sites, the mean's residual at the coordinator. Adapters: LoRA factors' differences of an r = 16
adapter, `int8` and `int4` against float32. Seconds are of one core's time in this process.

    python -m benchmarks.updates [--quick] [--json]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from common.federation import Sgd, Update
from common.grpo.master import MasterWeights
from common.update.chain import chain, decode, encode
from common.update.sparse_bf16 import patterns, rank
from common.update.tensors import State, byte_count
from server.outer import next_model, outer_optimizer

LEARNING_RATE = 1e-6
STEPS, QUICK_STEPS = (1, 8, 32), (1, 8)
SIZE = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
QUICK_SIZE = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2}
ROUNDS, ROUND_STEPS, SITES = 5, 8, 2
BATCH = (2, 64)
"""Sequences and tokens of a step."""
PHI_4 = 14.7e9
"""Weights of the model that the paper trains."""
ADAPTER_LAYERS, ADAPTER_RANK, ADAPTER_WIDTH = 8, 16, 1024
REPEATS = 5


@dataclass(frozen=True)
class Sparse:
    steps: int
    changed: float
    """Share of the bfloat16 weights."""
    ratio: float
    bound: float
    """Ratio at the entropy of the differences."""
    encode_mb_s: float
    """bfloat16 weights encoded, a second of one core."""
    decode_mb_s: float


@dataclass(frozen=True)
class Round:
    number: int
    changed: float
    ratio: float
    """All sites' models by all that they send."""
    bound: float


def phi_4_mb(ratio: float) -> float:
    return PHI_4 * 2 / ratio / 1e6


class Training:
    """A site's local steps on random tokens; its masters and AdamW's state stay from round to round."""

    def __init__(self, size: dict[str, int], seed: int) -> None:
        torch.manual_seed(0)
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128}
        config = Phi3Config(**size, **heads, pad_token_id=0, eos_token_id=1, bos_token_id=None)
        self.model = Phi3ForCausalLM(config).to(torch.bfloat16)
        self.vocabulary, self.random = size["vocab_size"], torch.Generator().manual_seed(seed)
        self.masters = MasterWeights(dict(self.model.named_parameters()), {})
        self.optimizer = torch.optim.AdamW(self.masters.stepped.values(), lr=LEARNING_RATE, weight_decay=0.0)

    def weights(self) -> State:
        return {name: parameter.detach().clone() for name, parameter in self.masters.rounded.items()}

    @torch.no_grad()
    def begin(self, model: State) -> None:
        """A round from this model, plus what the masters have gained below a unit so far."""
        for name, left in self.masters.residual().items():
            self.masters.rounded[name].copy_(model[name])
            self.masters.stepped[name].copy_(model[name].float() + left)

    def step(self, steps: int) -> None:
        for _ in range(steps):
            ids = torch.randint(0, self.vocabulary, BATCH, generator=self.random)
            self.model(input_ids=ids, labels=ids).loss.backward()
            self.masters.take_gradients()
            self.optimizer.step()
            self.masters.put_back()


def trained(size: dict[str, int], at: tuple[int, ...]) -> Iterator[tuple[int, State, State]]:
    """(steps, weights before, weights then), bfloat16, after each number of steps in `at`."""
    training, done = Training(size, seed=0), 0
    before = training.weights()
    for steps in at:
        training.step(steps - done)
        done = steps
        yield steps, before, training.weights()


def later_rounds(size: dict[str, int]) -> Iterator[Round]:
    way, outer = chain(Update(steps=("sparse-bf16",))), outer_optimizer(Sgd(), {})
    sites = [Training(size, seed) for seed in range(SITES)]
    model = sites[0].weights()
    for number in range(1, ROUNDS + 1):
        models, sent, bits, changed = [], 0, 0.0, 0.0
        for site in sites:
            site.begin(model)
            site.step(ROUND_STEPS)
            models.append(site.weights())
            sent += byte_count(encode(way, model, models[-1], {})[0])
            site_bits, site_changed = entropy_bits(model, models[-1])
            bits, changed = bits + site_bits / SITES, changed + site_changed / SITES
        yield Round(number, changed, SITES * byte_count(model) / sent, 16 / bits)
        means = ((name, torch.stack([m[name].double() for m in models]).mean(dim=0)) for name in model)
        model = next_model(outer, model, means)


def entropy_bits(before: State, after: State) -> tuple[float, float]:
    """Bits a weight of the differences' entropy, and the share of weights that changed."""
    counts = np.zeros(1 << 16, np.int64)
    for name, tensor in before.items():
        differences = rank(patterns(after[name])) - rank(patterns(tensor))
        counts += np.bincount(differences.view(np.uint16), minlength=1 << 16)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()), float(1 - counts[0] / counts.sum())


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Of this process on its core, the fastest of several: other work on the machine can only slow it."""
    took = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def sparse(size: dict[str, int], at: tuple[int, ...], repeats: int) -> Iterator[Sparse]:
    way = chain(Update(steps=("sparse-bf16",)))
    for steps, before, after in trained(size, at):
        sent, _ = encode(way, before, after, {})
        decoded = decode(way, before, sent, "benchmark")
        assert all(torch.equal(patterns_of(decoded[n]), patterns_of(after[n])) for n in after)
        bits, changed = entropy_bits(before, after)
        megabytes = byte_count(before) / 1e6
        yield Sparse(
            steps=steps,
            changed=changed,
            ratio=byte_count(before) / byte_count(sent),
            bound=16 / bits,
            encode_mb_s=megabytes / seconds(lambda b=before, a=after: encode(way, b, a, {}), repeats),
            decode_mb_s=megabytes / seconds(lambda b=before, s=sent: decode(way, b, s, "benchmark"), repeats),
        )


def patterns_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(patterns(tensor))


def adapter() -> tuple[State, State]:
    """LoRA factors B of a few layers before and after local steps: zeros, then small numbers."""
    random = torch.Generator().manual_seed(0)
    names = [f"layers.{n}.{part}.lora_B.default.weight" for n in range(ADAPTER_LAYERS) for part in ("qkv", "o", "down")]
    before = {name: torch.zeros(ADAPTER_WIDTH, ADAPTER_RANK) for name in names}
    return before, {n: torch.randn(t.shape, generator=random) * 1e-3 for n, t in before.items()}


def adapter_ratio(step: str) -> float:
    before, after = adapter()
    sent, _ = encode(chain(Update(steps=("difference", step))), before, after, {})
    return byte_count(before) / byte_count(sent)


def table(results: list[Sparse]) -> str:
    head = f"{'steps':>6}{'changed':>10}{'smaller':>10}{'bound':>8}{'encode':>12}{'decode':>12}{'14.7 B model':>15}"
    rows = [
        f"{r.steps:>6}{r.changed:>10.2%}{r.ratio:>9.0f}x{r.bound:>7.0f}x{r.encode_mb_s:>7.0f} MB/s"
        f"{r.decode_mb_s:>7.0f} MB/s{phi_4_mb(r.ratio):>12.0f} MB"
        for r in results
    ]
    return "\n".join([head, *rows])


def rounds_table(results: list[Round]) -> str:
    head = f"{'round':>6}{'changed':>10}{'smaller':>10}{'bound':>8}{'14.7 B model':>15}"
    rows = [
        f"{r.number:>6}{r.changed:>10.2%}{r.ratio:>9.0f}x{r.bound:>7.0f}x{phi_4_mb(r.ratio):>12.0f} MB" for r in results
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer steps: seconds, not a minute")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size, at = (QUICK_SIZE, QUICK_STEPS) if given.quick else (SIZE, STEPS)
    results = list(sparse(size, at, 2 if given.quick else REPEATS))
    rounds = list(later_rounds(size))
    ratios = {step: adapter_ratio(step) for step in ("int8", "int4")}
    if not given.json:
        print(table(results))
        print(f"{SITES} sites, {ROUND_STEPS} steps a round:\n{rounds_table(rounds)}")
        print("adapter against float32: " + ", ".join(f"{step} {ratio:.2f}x" for step, ratio in ratios.items()))
    eight = next(r for r in results if r.steps == 8)
    keys = {
        "sparse_bf16_ratio": eight.ratio,
        "sparse_bf16_over_bound": eight.bound / eight.ratio,
        "sparse_bf16_ratio_last_round": rounds[-1].ratio,
        "sparse_bf16_over_bound_last_round": rounds[-1].bound / rounds[-1].ratio,
        "encode_mb_s": eight.encode_mb_s,
        "int8_ratio": ratios["int8"],
        "int4_ratio": ratios["int4"],
    }
    steps = {f"after_{r.steps}_steps": {k: round(v, 4) for k, v in asdict(r).items()} for r in results}
    by_round = {f"round_{r.number}": {k: round(v, 4) for k, v in asdict(r).items()} for r in rounds}
    print(json.dumps({name: round(value, 4) for name, value in keys.items()} | steps | by_round))


if __name__ == "__main__":
    main()
