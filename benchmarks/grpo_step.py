"""A GRPO step here against TRL's own trainer on the same model and prompts, in float32 on one CPU thread.

TRL's GRPOTrainer runs as its documentation starts it (`trainer.train()`, its defaults, which recompute activations)
but for float32, the CPU, and lengths. Each side takes one step on one prompt in a process of its own; a second step
of nothing but the loss, on the same completions, gives the gradients that are compared. Seconds are the process's
CPU time: with one thread that is the wall time of an idle machine.

    OMP_NUM_THREADS=1 python -m benchmarks.grpo_step [--quick] [--cell PROMPTxGROUP ...] [--json] [--plot FILE]
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer

from benchmarks._apart import apart
from common.grpo.local import LocalTrainer
from common.grpo.rewards import right_letter
from common.models.policy import load_policy
from common.study import PrefixRoute, Study, parse_study

PROMPT, COMPLETION, GROUP = 1024, 128, 8
GRID = [(256, 4), (256, 7), (256, 16), (1024, 4), (1024, 7), (1024, 8), (1024, 16), (4096, 4), (4096, 7), (4096, 16)]
QUICK_PROMPT, QUICK_COMPLETION, QUICK_GROUP = 512, 64, 8
VOCABULARY = 4096
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "num_attention_heads": 4}
QUICK_SHAPE = SHAPE | {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2}
KEEPS = "trl-keeps"
"""TRL without its default of recomputing activations: faster, with more memory."""
OURS: dict[str, PrefixRoute] = {"ours": "auto", "packed": "packed"}
"""Our sides, with the route that each is given."""


@dataclass(frozen=True)
class Step:
    """One optimiser step: CPU seconds by part, tokens drawn, and memory above the loaded process at its peak."""

    generating: float
    learning: float
    """Log-probabilities, loss and backward pass."""
    whole: float
    """With rewards and optimiser."""
    tokens: int
    peak_mib: float


@dataclass(frozen=True)
class Ratio:
    """TRL's cost by ours; memory the other way round."""

    prompt: int
    group: int
    learning: float
    generation: float
    step: float
    memory: float


def make_model(folder: Path, shape: dict[str, int]) -> None:
    """A randomly initialised model of Phi-3 architecture whose tokens are words."""
    words = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, VOCABULARY)}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = Phi3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **shape,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)


def chosen_study(model: Path, prompt: int, completion: int, group: int, route: PrefixRoute) -> Study:
    grpo = {
        "group_size": group,
        "prompts_per_step": 1,
        "loss_type": "dapo",
        "learning_rate": 1e-6,
        "prefix_route": route,
        "max_prompt_tokens": prompt,
        "max_completion_tokens": completion,
    }
    values = {"name": "benchmark", "sites": {"train": ["a"]}, "model": {"base": str(model)}, "grpo": grpo}
    return parse_study(values, "benchmark")


def our_trainer(
    model: Path, prompt: int, completion: int, group: int, route: PrefixRoute = "auto"
) -> LocalTrainer:
    """On one question of `prompt` tokens with what stands around it."""
    study = chosen_study(model, prompt, completion, group, route)
    policy = load_policy(study, model)
    around = len(policy.encode([policy.prompt_text("", "")])[0])
    text = " ".join(f"w{n % (VOCABULARY - 3) + 3}" for n in range(prompt - around))
    question = pl.DataFrame({"system": [""], "prompt": [text], "answer": [0], "reference": [""]})
    return LocalTrainer(policy, study, question, "benchmark")


def their_trainer(
    model: Path, rows: list[dict[str, str]], completion: int, group: int, recompute: bool = True
) -> GRPOTrainer:
    args = GRPOConfig(
        output_dir=str(model / "trl"),
        num_generations=group,
        per_device_train_batch_size=group,
        max_completion_length=completion,
        max_steps=1,
        activation_checkpointing=recompute,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(model=str(model), reward_funcs=right_letter, args=args, train_dataset=Dataset.from_list(rows))
    trainer.remove_callback(PrinterCallback)
    return trainer


def clocked(seconds: dict[str, float], owner: type, name: str) -> None:
    """Add up the CPU time of every call of a method."""
    method = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        out = method(*given, **named)
        seconds[name] += time.process_time() - start
        return out

    setattr(owner, name, timed)


def memory_kib(field: str) -> int:
    """`VmRSS` or `VmHWM` (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def take_step(side: str, model: Path, prompt: int, completion: int, group: int) -> Step:
    """Runs in a process of its own: it changes the classes that it measures, and its peak memory is asked for."""
    seconds: dict[str, float] = defaultdict(float)
    for name in ("_generate", "_generate_and_score_completions", "training_step"):
        clocked(seconds, GRPOTrainer, name)
    clocked(seconds, torch.optim.AdamW, "step")
    ours = our_trainer(model, prompt, completion, group, OURS.get(side, "auto"))
    if side in OURS:
        trainer: GRPOTrainer = ours.trainer
        before = memory_kib("VmRSS")
        ours.run(0, 1, model / "state")
    else:
        trainer = their_trainer(model, ours.rows, completion, group, recompute=side != KEEPS)
        before = memory_kib("VmRSS")
        trainer.train()
    return Step(
        seconds["_generate"],
        seconds["training_step"] - seconds["_generate_and_score_completions"],
        seconds["training_step"] + seconds["step"],
        int(trainer.state.num_input_tokens_seen) - prompt * group,
        (memory_kib("VmHWM") - before) / 1024,
    )


def gradient_difference(model: Path, prompt: int, completion: int, group: int) -> float:
    """Relative difference of the two gradients for the same random completions."""
    ours = our_trainer(model, prompt, completion, group)
    theirs = their_trainer(model, ours.rows, completion, group)
    ids = torch.tensor(ours.policy.encode([ours.rows[0]["prompt"]])).expand(group, -1)
    torch.manual_seed(2)
    completions = torch.randint(3, VOCABULARY, (group, completion))
    inputs: dict[str, Tensor] = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.randn(group),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    gradients = []
    for trainer in (ours.trainer, theirs):
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer.compute_loss(trainer.model, inputs).backward()
        named = sorted(trainer.model.named_parameters())
        gradients.append(torch.cat([p.grad.flatten() for _, p in named if p.grad is not None]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def compare(ours: Step, trl: Step, prompt: int, group: int) -> Ratio:
    return Ratio(
        prompt,
        group,
        trl.learning / ours.learning,
        (ours.tokens / ours.generating) / (trl.tokens / trl.generating),
        trl.whole / ours.whole,
        ours.peak_mib / trl.peak_mib,
    )


def show(side: str, prompt: int, group: int, step: Step, ratio: Ratio | None) -> None:
    line = (
        f"{prompt:>6} x {group:<3} {side:10}{step.generating:>9.2f} s{step.learning:>9.2f} s{step.whole:>9.2f} s"
        f"{step.peak_mib:>9.0f} MiB"
    )
    if ratio:
        line += f"{ratio.generation:>11.2f}{ratio.learning:>10.2f}{ratio.step:>8.2f}{ratio.memory:>9.2f}"
    print(line, flush=True)


def plot(ratios: list[Ratio], file: Path) -> None:
    """How each ratio grows with the prompt and the group."""
    from matplotlib import pyplot

    panels = {"learning": "learning", "generation": "generation", "step": "whole step", "memory": "peak memory"}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.4), layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for prompt in sorted({ratio.prompt for ratio in ratios}):
            mine = [ratio for ratio in ratios if ratio.prompt == prompt]
            axis.plot([r.group for r in mine], [asdict(r)[name] for r in mine], "o-", label=f"prompt {prompt:,}")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(title=title, xlabel="completions a prompt", ylim=(0, None), xticks=sorted({r.group for r in ratios}))
    axes[0].set_ylabel("TRL / ours")
    axes[-1].set_ylabel("ours / TRL")
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


def json_ratios(ratio: Ratio, suffix: str) -> dict[str, float]:
    values = {name: value for name, value in asdict(ratio).items() if name not in ("prompt", "group")}
    return {f"{name}{suffix}": round(value, 3) for name, value in values.items()}


def run(
    cells: list[tuple[int, int]], named: tuple[int, int], completion: int, model: Path, quiet: bool
) -> tuple[list[Ratio], dict[str, Ratio]]:
    """A ratio for each (prompt, group); and those of `named` against TRL that keeps activations, and of `packed`."""
    if not quiet:
        print(f"completion {completion}, 1 thread; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        columns = f"{'generating':>11}{'learning':>11}{'step':>11}{'peak memory':>13}"
        print(f"{'prompt x group':22}{columns}{'generation':>11}{'learning':>10}{'step':>8}{'memory':>9}")
    ratios, others = [], {}
    for prompt, group in cells:
        sides = ("ours", "trl", "packed", KEEPS) if (prompt, group) == named else ("ours", "trl")
        steps: dict[str, Step] = {side: apart(take_step, side, model, prompt, completion, group) for side in sides}
        ours, trl = steps["ours"], steps["trl"]
        compared = {"trl": compare(ours, trl, prompt, group)}
        ratios.append(compared["trl"])
        if (prompt, group) == named:
            others = {
                "packed": compare(steps["packed"], trl, prompt, group),
                KEEPS: compare(ours, steps[KEEPS], prompt, group),
            }
        if not quiet:
            for side, step in steps.items():
                show(side, prompt, group, step, (compared | others).get(side))
    return ratios, others


def cell(text: str) -> tuple[int, int]:
    """`1024x8` as (prompt, group)."""
    prompt, _, group = text.partition("x")
    return int(prompt), int(group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short prompt on a smaller model")
    parser.add_argument(
        "--cell", type=cell, nargs="+", help="these cells alone, such as 1024x8; the first one's ratios are named"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    parser.add_argument("--plot", type=Path, help="also draw the ratios into this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    # What libraries say about themselves would stand between the table's lines.
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "DS_ACCELERATOR": "cpu"}
    cells = given.cell or ([(QUICK_PROMPT, QUICK_GROUP)] if given.quick else GRID)
    completion = QUICK_COMPLETION if given.quick else COMPLETION
    named = (PROMPT, GROUP) if cells is GRID else cells[0]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary)
        apart(make_model, model, QUICK_SHAPE if given.quick else SHAPE)
        ratios, others = run(cells, named, completion, model, given.json)
        difference = apart(gradient_difference, model, named[0], completion, named[1])
    if given.plot:
        plot(ratios, given.plot)
    if not given.json:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{time.perf_counter() - start:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of them CPU time")
    values = json_ratios(ratios[cells.index(named)], "_ratio") | json_ratios(others[KEEPS], "_ratio_trl_keeps")
    values |= json_ratios(others["packed"], "_ratio_packed")
    lowest = min(min(ratio.learning, ratio.generation, ratio.step) for ratio in ratios)
    print(json.dumps(values | {"lowest_ratio": round(lowest, 3), "gradient_difference": difference}))


if __name__ == "__main__":
    main()
