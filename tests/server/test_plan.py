"""The plan's estimates against what is measured on a small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from common.errors import UserError
from common.grpo.local import LocalTrainer
from common.grpo.logps import completion_logps
from common.grpo.prefix import read_prompts
from common.models.adapters import trained_in_round
from common.models.policy import load_policy, trainable_parameters, trainable_state
from common.models.shape import read_config, shape_of
from common.plan import GPUS, Batch, Load, activations, cache, load_of, memory, step_seconds
from common.study import Study, read_study
from server.cli import print_needs

PAPER = Path(__file__).parents[2] / "studies" / "paper.toml"


def test_phi_4_is_counted_whole() -> None:
    shape = shape_of(read_study(PAPER), read_config(read_study(PAPER), None))
    # What the published checkpoint holds: 29.3 GB in bfloat16.
    assert shape.parameters == shape.trainable == 14_659_507_200
    assert shape.base_bytes == 2 * shape.parameters and shape.adapter_bytes == 0


@pytest.mark.parametrize(("trainable", "dtype"), [("all", "float32"), ("all", "bfloat16"), ("lora", "float32")])
def test_state_is_as_large_as_planned(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path, trainable: str, dtype: str
) -> None:
    grpo = {"group_size": 2, "prompts_per_step": 4, "max_completion_tokens": 4, "beta": 0.1}
    study = small_study(model={"base": str(tiny_model), "trainable": trainable, "dtype": dtype}, grpo=grpo)
    plan = memory(study, shape_of(study, read_config(study, None)), 1, "none")
    policy = load_policy(study, tiny_model)
    assert plan["weights"] == sum(p.nbytes for p in policy.model.parameters())
    trained = trainable_parameters(policy).values()
    assert plan["gradients"] == sum(4 * p.numel() for p in trained)
    LocalTrainer(policy, study, some_questions(), "somewhere").run(0, 1, tmp_path)
    kept = load_file(tmp_path / "optimizer-1.safetensors")
    assert plan["optimiser"] == sum(t.nbytes for name, t in kept.items() if name.startswith("exp_avg"))
    # The masters' residual is a float32 for each that is rounded.
    assert plan["float32 masters"] == sum(t.nbytes for name, t in kept.items() if name.startswith("residual/"))
    assert plan["reference"] == (plan["weights"] if trainable == "all" else 0)


@pytest.mark.parametrize("average", ["frozen-a", "alternating", "residual", "separate", None])
def test_what_travels_is_as_large_as_planned(
    small_study: Callable[..., Study], tiny_model: Path, average: str | None
) -> None:
    lora = {"trainable": "all"} if average is None else {"trainable": "lora", "lora": {"average": average}}
    study = small_study(model={"base": str(tiny_model), **lora})
    shape, model = shape_of(study, read_config(study, None)), trainable_state(load_policy(study, tiny_model))
    assert shape.down_bytes == sum(tensor.nbytes for tensor in model.values())
    sent = [sum(t.nbytes for t in trained_in_round(study.model, number, model).values()) for number in (1, 2)]
    assert shape.up_bytes == max(sent)
    assert (sent[0] != sent[1]) == (average == "alternating")


def some_questions() -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {"system": "Answer.", "prompt": f"Question {n}", "answer": 0, "reference": "x"} for n in range(8)
    ]
    return pl.DataFrame(rows)


LOAD = {"group_size": 4, "prompts_per_step": 2, "max_prompt_tokens": 256, "max_completion_tokens": 32}


def batch() -> Tensor:
    """Token ids `[8, 288]` of two groups."""
    torch.manual_seed(1)
    ids = torch.randint(5, 200, (8, 288))
    ids[:, :256] = ids[[0, 0, 0, 0, 4, 4, 4, 4], :256]
    return ids


@pytest.mark.parametrize("route", ["expanded", "plain"])
def test_activations_are_as_large_as_planned(small_study: Callable[..., Study], tiny_model: Path, route: str) -> None:
    """Bytes that autograd keeps, each storage once, weights and the head apart; within a half."""
    study = small_study(grpo={**LOAD, "prefix_route": route})
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = batch()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept_alive = completion_logps(model, ids, torch.ones_like(ids), 32, 1.0, route)
    assert kept_alive[0].requires_grad
    # Logits and their log-softmax.
    head = 2 * 4 * 8 * 32 * model.config.vocab_size
    measured = sum(storages.values()) - head
    planned = activations(study, shape_of(study, read_config(study, None)), load_of(study, 1))
    assert measured / 1.5 < planned < measured * 1.5


def test_the_packed_route_keeps_each_layers_input_as_planned(
    small_study: Callable[..., Study], tiny_model: Path
) -> None:
    """Within 5 %: the last token of a completion does not enter."""
    study = small_study(grpo={**LOAD, "prefix_route": "packed"})
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    measured = 0

    def count(_: nn.Module, hidden: tuple[Tensor, ...]) -> None:
        nonlocal measured
        measured += hidden[0].nbytes

    for layer in model.model.layers:
        layer.register_forward_pre_hook(count)
    ids = batch()
    completion_logps(model, ids, torch.ones_like(ids), 32, 1.0, "packed")
    shape, load = shape_of(study, read_config(study, None)), load_of(study, 1)
    layers = model.config.num_hidden_layers
    again = load.at_once.tokens * 2 * shape.written // layers * 4
    assert measured == pytest.approx(activations(study, shape, load) - again, rel=0.05)


def test_the_cache_is_as_large_as_planned(small_study: Callable[..., Study], tiny_model: Path) -> None:
    study = small_study(grpo={"group_size": 2, "prompts_per_step": 3, "prefix_route": "expanded"})
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = torch.randint(5, 200, (6, 40))
    prefix = read_prompts(model, rows, torch.ones_like(rows))
    measured = sum(keys.nbytes + values.nbytes for keys, values in prefix.layers)
    batch = Batch(prompts=3, rows=6, prompt=30, completion=10)
    assert cache(study, shape_of(study, read_config(study, None)), Load(batch, batch)) == measured


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_needs(read_study(PAPER), "a100-80gb", 7, 0.4, None)
    printed = capsys.readouterr().out
    assert "ZeRO-3" in printed and "14,659,507,200" in printed and "days for 6,000 steps" in printed
    assert "28,000 on the busiest GPU: 2 x prompt, 5 x completion" in printed and "cannot start" not in printed
    print_needs(read_study(PAPER), "a100-80gb", 8, 0.4, None)
    assert "8 processes cannot start" in (printed := capsys.readouterr().out) and "1, 5, 7, 35 (" in printed
    with pytest.raises(UserError, match="this GPU is not known"):
        print_needs(read_study(PAPER), "abacus", 1, 0.4, None)


def test_sharding_divides_what_it_says(small_study: Callable[..., Study]) -> None:
    study = small_study()
    shape = shape_of(study, read_config(study, None))
    alone, states, all_of_it = (memory(study, shape, 4, sharding) for sharding in ("none", "ZeRO-2", "ZeRO-3"))
    assert states["weights"] == alone["weights"] == 4 * all_of_it["weights"]
    assert alone["optimiser"] == 4 * states["optimiser"] == 4 * all_of_it["optimiser"]
    assert alone["learning"] == states["learning"]
    # To generate, stage 3 puts the weights together.
    assert all_of_it["weights"] + all_of_it["generating"] == alone["weights"] + alone["generating"]


def test_processes_that_split_groups_compute_prompts_again() -> None:
    study = read_study(PAPER)
    shape = shape_of(study, read_config(study, None))
    loads = [load_of(study, gpus) for gpus in (1, 5, 7, 35)]
    assert [(load.share.prompts, load.share.rows) for load in loads] == [(5, 35), (1, 7), (2, 5), (1, 1)]
    # One group's rows at most stand together.
    assert [(load.at_once.prompts, load.at_once.rows) for load in loads] == [(1, 7), (1, 7), (2, 5), (1, 1)]
    one, five, seven, all_rows = (
        step_seconds(study, shape, GPUS["a100-80gb"], gpus, 0.4)["learning"] for gpus in (1, 5, 7, 35)
    )
    assert one == pytest.approx(5 * five) and all_rows < five < seven < one


def test_a_model_that_is_not_known_is_refused(small_study: Callable[..., Study], tmp_path: Path) -> None:
    study = small_study(model={"base": "somebody/something"})
    for folder in (None, tmp_path):
        with pytest.raises(UserError, match="there is no config.json"):
            read_config(study, folder)


def test_a_server_samples_on_a_gpu_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    alone = read_study(PAPER)
    jobs = {"launcher": "python -m common.grpo.job {folder}", "vllm": "vllm serve {model}"}
    beside = alone.model_copy(update={"simulation": alone.simulation.model_copy(update=jobs)})
    shape = shape_of(alone, read_config(alone, None))
    assert memory(beside, shape, 7, "ZeRO-3")["generating"] == 0 < memory(alone, shape, 7, "ZeRO-3")["generating"]
    one, seven, served = (
        step_seconds(study, shape, GPUS["a100-80gb"], gpus, 0.4)
        for study, gpus in ((alone, 1), (alone, 7), (beside, 7))
    )
    assert served["generating"] == one["generating"]
    # Forward and backward with layers computed again, the reference, and what the importance correction scores.
    assert served["learning"] / seven["learning"] == pytest.approx(6 / 5)
    print_needs(beside, "a100-80gb", 7, 0.4, None)
    assert "29.3 GB of weights, written and read again each step" in " ".join(capsys.readouterr().out.split())
