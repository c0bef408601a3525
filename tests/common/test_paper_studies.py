"""studies/paper*.toml: C-Reason's settings (arXiv 2505.02722), row by row, and a small twin that is run."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from common.grpo.job import Job
from common.grpo.launch import run_job
from common.grpo.local import LocalTrainer, by_step
from common.grpo.ranks import by_group, even_parts, share
from common.launcher import command
from common.models.policy import load_policy, trainable_state
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.registry.splits import split_patients
from common.study import Study, parse_study, read_study
from common.tasks.site_questions import site_questions

ROOT = Path(__file__).parents[2]
TABLE = {
    # base: microsoft/phi-4, all parameters, bf16
    "model.base": "microsoft/phi-4",
    "model.trainable": "all",
    "model.dtype": "bfloat16",
    # reward: the right letter in the first box, nothing else
    "grpo.rewards": {"answer": 1.0, "format": 0.0, "length": 0.0, "length_from": 0.8},
    # group: 7 completions a prompt, 5 prompts an update
    "grpo.group_size": 7,
    "grpo.prompts_per_step": 5,
    # questions: 30,000 of the paper's construction; one epoch and the number of updates are in a test of their own
    "questions.fidelity": "paper",
    "questions.tasks": ["masked_value"],
    "questions.ask": ["category", "number"],
    "questions.max_choices": 5,
    "questions.difficulty": 2.0,
    "questions.mi_threshold": 0.5,
    # optimiser: paged 8-bit AdamW, lr 1e-6, cosine, 10 % warm-up, clip 1.0
    "grpo.optimizer": "paged_adamw_8bit",
    "grpo.learning_rate": 1e-6,
    "grpo.schedule": "cosine",
    "grpo.warmup_ratio": 0.1,
    "grpo.max_grad_norm": 1.0,
    "grpo.weight_decay": 0.0,
    # lengths
    "grpo.max_prompt_tokens": 9000,
    "grpo.max_completion_tokens": 2000,
    # objective: advantages by group, mean over tokens then sequences, KL to a reference that is moved
    "grpo.scale_rewards": "group",
    "grpo.loss_type": "grpo",
    "grpo.beta": 0.04,
    "grpo.reference_every": 64,
    "grpo.reference_alpha": 0.9,
    "grpo.dynamic_sampling": 0,
    # sampling
    "grpo.temperature": 0.9,
    # systems: gradient checkpointing is the packed route's; the launcher that stands ready has a test of its own
    "grpo.prefix_route": "packed",
    # evaluation: greedy
    "evaluation.max_completion_tokens": 8192,
}
LORA = {
    "model.trainable": "lora",
    "grpo.learning_rate": 1e-5,
    "grpo.reference_every": None,
}


def shipped(name: str) -> Study:
    return read_study(ROOT / "studies" / f"{name}.toml")


def found(study: Study, key: str) -> Any:
    table, name = key.split(".")
    return study.model_dump(mode="json")[table][name]


@pytest.mark.parametrize("key", TABLE)
def test_every_setting_is_the_papers(key: str) -> None:
    assert found(shipped("paper"), key) == TABLE[key]
    assert found(shipped("paper-federated"), key) == TABLE[key]
    assert found(shipped("paper-lora"), key) == LORA.get(key, TABLE[key])


@pytest.mark.parametrize("name", ["paper", "paper-federated", "paper-lora"])
def test_thirty_thousand_questions_are_one_epoch(name: str) -> None:
    study = shipped(name)
    assert study.questions.per_site is not None
    assert study.questions.per_site * len(study.sites.train) == 30_000
    assert study.questions.per_site == study.total_steps * study.grpo.prompts_per_step
    if name != "paper-federated":
        assert study.total_steps == 6_000
    assert study.evaluation.patients_per_site * len(study.sites.train) == 1_000
    assert study.evaluation.questions_per_patient is None


@pytest.mark.parametrize("name", ["paper", "paper-lora"])
def test_seven_processes_under_zero_3_and_vllm_on_an_eighth_gpu_stand_ready(name: str, tmp_path: Path) -> None:
    """The launcher is a comment in the study: GPUs are a machine's own affair."""
    text = (ROOT / "studies" / f"{name}.toml").read_text(encoding="utf-8")
    values = tomllib.loads(text.replace("# launcher", "launcher").replace("# vllm", "vllm"))
    study = parse_study(values, name)
    assert study.simulation.launcher is not None
    # The eighth GPU samples.
    assert study.simulation.vllm is not None and "CUDA_VISIBLE_DEVICES=7" in study.simulation.vllm
    words = command(study.simulation.launcher, tmp_path)
    processes = int(words[words.index("--num_processes") + 1])
    zero = json.loads(Path(words[words.index("--config_file") + 1]).read_text(encoding="utf-8"))["deepspeed_config"]
    assert zero["zero_stage"] == 3 and zero["offload_optimizer_device"] == zero["offload_param_device"] == "none"
    group, rows = study.grpo.group_size, study.grpo.prompts_per_step * study.grpo.group_size
    shares = [share(rows, number, processes) for number in range(processes)]
    assert [len(mine) for mine in shares] == 7 * [5]
    assert max(len(by_group(mine, group)) for mine in shares) == 2
    # All five at once, as the reference code does: they are fewer than the one group's that may stand in memory.
    assert study.grpo.groups_at_once == 1 and even_parts(5, group) == 1


def test_lora_is_on_all_linear_layers_with_alpha_32() -> None:
    assert shipped("paper-lora").model.lora.alpha == 32


@pytest.mark.parametrize("name", ["paper", "paper-federated"])
def test_the_shipped_registries_have_patients_for_as_many_questions(name: str) -> None:
    study = shipped(name)
    for site in study.sites.train:
        registry = load_registry(read_registry_config(Path(study.simulation.site_configs) / f"{site}.toml"))
        sides = split_patients(
            registry.frame["patient"].to_list(), study.seed, study.questions.test_fraction, registry.sides
        )
        asked = len(sides["train"]) - study.rounds.validation_patients
        assert study.questions.per_site is not None
        # The paper's construction drops a question here and there.
        assert asked * study.questions.per_patient > 1.2 * study.questions.per_site
        assert len(sides["test"]) > study.evaluation.patients_per_site


def twin(model: Path, **grpo: Any) -> Study:
    """The paper's study in small: where, which model and how many, nothing else."""
    values = shipped("paper").model_dump(mode="json", exclude_none=True)
    values["sites"]["train"] = ["synthetic-north"]
    values["model"]["base"] = str(model)
    values["questions"] |= {"per_site": 40, "per_patient": 1}
    values["grpo"] |= {"max_prompt_tokens": 1024, "max_completion_tokens": 6, "reference_every": 2, **grpo}
    values["rounds"] |= {"rounds": 2, "local_steps": 4}
    values["evaluation"] |= {"max_completion_tokens": 6}
    return parse_study(values, "twin")


@pytest.fixture(scope="module")
def questions(tiny_model: Path) -> pl.DataFrame:
    study = twin(tiny_model)
    file = ROOT / "site_configs" / "synthetic" / "synthetic-north.toml"
    return site_questions(load_registry(read_registry_config(file)), study).train


def test_the_twin_differs_in_size_alone(tiny_model: Path) -> None:
    small, whole = twin(tiny_model).canonical()["grpo"], shipped("paper").canonical()["grpo"]
    assert {key for key in whole if small[key] != whole[key]} == {
        "max_prompt_tokens", "max_completion_tokens", "reference_every"
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_the_twin_takes_the_papers_steps(
    tiny_model: Path, questions: pl.DataFrame, tmp_path: Path, optimizer: str
) -> None:
    """bfloat16, all parameters, cosine with warm-up, KL to a moving reference, 7 x 5 completions, one epoch."""
    if optimizer == "paged_adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra: pip install wardround[eight-bit]")
    study = twin(tiny_model, optimizer=optimizer, learning_rate=1e-2)
    assert questions["question_id"].is_unique().all()
    assert questions.height == 40 == study.total_steps * study.grpo.prompts_per_step
    policy = load_policy(study, tiny_model)
    base = trainable_state(policy)
    assert {t.dtype for t in base.values()} == {torch.bfloat16}
    trainer = LocalTrainer(policy, study, questions, "synthetic-north")
    assert trainer.trainer.num_iterations == 1  # on-policy: the ratio is 1, so nothing is clipped
    asked = [row["prompt"] for step in range(study.total_steps) for row in trainer.batch(step)]
    assert sorted(asked) == sorted(row["prompt"] for row in trainer.rows), "not one epoch"
    result = trainer.run(0, study.total_steps, tmp_path)
    assert len(result.rewards) == 8 and sum(result.informative) > 0
    assert all(0 < told["tokens"] <= 6 for told in json.loads(json.dumps(by_step(result)))["signs"])
    after = trainable_state(policy)
    assert trainer.trainer.ref_model is not None
    reference = dict(trainer.trainer.ref_model.named_parameters())
    for name in base:
        assert not torch.equal(after[name], base[name]) and torch.isfinite(after[name]).all()
        assert not torch.equal(reference[name].cpu(), base[name]), "the reference did not move"


def masters(trained: dict[str, torch.Tensor], state: Path) -> dict[str, torch.Tensor]:
    """What the optimiser steps: the float32 weights that the bfloat16 ones are rounded from."""
    kept = load_file(state)
    return {name: value.double() + kept[f"residual/{name}"] for name, value in trained.items()}


def way(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(sum((a[name].double() - b[name].double()).norm() ** 2 for name in a)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes", "prompts"), [(2, 2, 6), (3, 7, 5)])
def test_the_twin_under_zero_is_that_of_one_process(
    tiny_model: Path, questions: pl.DataFrame, tmp_path: Path, stage: int, processes: int, prompts: int
) -> None:
    """Several processes take the next step from the state of one: float32 masters, moments, reference, schedule. Within
    a tenth of that step: bfloat16 rounds products of another shape otherwise, and a completion may be drawn
    otherwise. Seven under ZeRO-3, 5 of the 5 x 7 completions each, are the paper's."""
    study = twin(tiny_model, optimizer="adamw", learning_rate=1e-3, prompts_per_step=prompts, reference_every=3)
    one, two, table = tmp_path / "one", tmp_path / "two", tmp_path / "questions.parquet"
    policy = load_policy(study, tiny_model)
    base = trainable_state(policy)
    LocalTrainer(policy, study, questions, "synthetic-north").run(0, 2, one)
    shutil.copytree(one, two)
    half = trainable_state(policy)
    before = masters(half, one / "optimizer-2.safetensors")
    LocalTrainer(policy, study, questions, "synthetic-north").run(2, 1, one)
    want = masters(trainable_state(policy), one / "optimizer-3.safetensors")

    questions.write_parquet(table)
    job = Job(study=study, model=str(tiny_model), questions=str(table), stream="synthetic-north", first_step=2, steps=1,
              state_step=2, state_dir=str(two), proximal=0.0)  # fmt: skip
    zero = f"--config_file {{zero{stage}}} --num_processes {processes}"
    trained, _ = run_job(
        f"{{python}} -m accelerate.commands.launch {zero} -m common.grpo.job {{folder}}", tmp_path / "job", job, half
    )
    got = masters(trained, two / "optimizer-3.safetensors")
    assert 0 < way(got, want) < 0.1 * way(want, before)
    moved, reference = (load_file(folder / "reference-3.safetensors") for folder in (two, one))
    assert 0 < way(moved, reference) < 0.1 * way(reference, base)
