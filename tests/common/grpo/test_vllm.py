"""Completions from a vLLM server. What needs the real one runs where WARDROUND_VLLM names its program, and is skipped
elsewhere: vLLM lives in an environment of its own (docs/site_operator.md)."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from benchmarks._tiny import answering_model
from common.errors import UserError
from common.grpo.generation import Completion, sample
from common.grpo.job import Job
from common.grpo.launch import SERVER_LOG, JobEnded, run_job
from common.grpo.local import LocalResult, LocalTrainer
from common.grpo.logps import completion_logps
from common.grpo.vllm import Server, command, serving, whole_weights
from common.models.policy import Policy, load_policy, trainable_parameters, trainable_state
from common.study import Study

PLAIN = "{python} -m common.grpo.job {folder}"
ZERO = "{python} -m accelerate.commands.launch --config_file {zero3} --num_processes 2 -m common.grpo.job {folder}"
PROGRAM = os.environ.get("WARDROUND_VLLM")
# Compiled, a server would take minutes to answer first.
VLLM = f"env TORCHDYNAMO_DISABLE=1 {PROGRAM} serve {{model}} --enforce-eager --no-enable-chunked-prefill"


def job(study: Study, model: Path, questions: pl.DataFrame, folder: Path, **values: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    questions.write_parquet(folder / "questions.parquet")
    asked = {"questions": str(folder / "questions.parquet"), "state_dir": str(folder / "state")}
    return Job(study=study, model=str(model), stream="somewhere", first_step=0, steps=2, state_step=0, proximal=0.0,
               **asked, **values)  # fmt: skip


def test_the_study_decides_what_the_server_computes(make_study: Callable[..., Study], tmp_path: Path) -> None:
    study = make_study(max_prompt_tokens=300, max_completion_tokens=20, dtype="bfloat16")
    words = command("env CUDA_VISIBLE_DEVICES=7 vllm serve {model} --enforce-eager", "base", study, tmp_path / "s")
    assert words[:6] == ["env", "CUDA_VISIBLE_DEVICES=7", "vllm", "serve", "base", "--enforce-eager"]
    given = dict(zip(words[6::2], words[7::2], strict=True))
    assert given["--max-model-len"] == "320" and given["--dtype"] == "bfloat16"
    assert given["--uds"] == str(tmp_path / "s") and given["--logprobs-mode"] == "processed_logprobs"


def test_a_server_that_cannot_start_ends_the_job(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, tmp_path: Path
) -> None:
    study = make_study()
    state, asked = trainable_state(load_policy(study, tiny_model)), job(study, tiny_model, questions, tmp_path)
    with pytest.raises(UserError, match="no program no-such-vllm"):
        run_job(PLAIN, tmp_path, asked, state, vllm="no-such-vllm serve {model}")
    with pytest.raises(JobEnded, match="vLLM server ended"):
        run_job(PLAIN, tmp_path, asked, state, vllm="sh -c 'echo no device; exit 3' {model}")
    assert (tmp_path / SERVER_LOG).read_text() == "no device\n"


def test_weights_are_sent_whole_with_the_adapter_in_them(random_model: Callable[..., nn.Module]) -> None:
    model = random_model("lora")
    sent = whole_weights(model, Accelerator(cpu=True))
    assert isinstance(model, PeftModel)
    want = dict(model.merge_and_unload().named_parameters())
    assert sent.keys() == want.keys()
    assert all(torch.equal(sent[name], want[name]) for name in want)


def gradients(trainer: LocalTrainer, policy: Policy, unlikely: float) -> dict[str, Tensor]:
    """Of one step whose completions another program drew, `unlikely` nats less likely there than here."""
    policy.model.zero_grad()
    rows = [row for row in trainer.batch(0) for _ in range(trainer.study.grpo.group_size)]
    prompts = policy.encode([str(row["prompt"]) for row in rows])
    torch.manual_seed(3)
    drawn = []
    for prompt, ids in zip(prompts, sample(policy.model, prompts, 1, 6, 1.0, policy.eos, policy.pad), strict=True):
        logps = learner_logps(policy, prompt, ids, 1.0)
        drawn.append(Completion(ids, [*logps[:-1], logps[-1] - unlikely]))
    trainer.trainer.sampled_before = drawn
    trainer.trainer.training_step(policy.model, rows, None)
    return {name: p.grad.clone() for name, p in trainable_parameters(policy).items() if p.grad is not None}


def learner_logps(policy: Policy, prompt: list[int], ids: list[int], temperature: float) -> list[float]:
    with torch.no_grad():
        row = torch.tensor([prompt + ids])
        logps, _ = completion_logps(policy.model, row, torch.ones_like(row), len(ids), temperature, "plain")
    return [float(value) for value in logps[0]]


def test_a_gradient_is_weighed_by_how_likely_the_learner_finds_what_was_drawn(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, tmp_path: Path
) -> None:
    """TRL's importance correction, in its default form: a ratio above 3 takes the sequence out."""
    study = make_study()
    policy = load_policy(study, tiny_model)
    nobody = Server(tmp_path / "socket", tmp_path / "weights")
    trainer = LocalTrainer(policy, study, questions, "somewhere", server=nobody)
    alike, twice, four_times = (gradients(trainer, policy, math.log(ratio)) for ratio in (1, 2, 4))
    assert sum(float(gradient.norm()) for gradient in alike.values()) > 0
    for name, gradient in alike.items():
        torch.testing.assert_close(twice[name], 2 * gradient, rtol=1e-4, atol=1e-7)
        assert not four_times[name].any()
    told = trainer.trainer._metrics["train"]["sampling/sampling_logp_difference/mean"]
    assert told[0] < 1e-5 < told[1] < told[2]


needs_vllm = pytest.mark.skipif(PROGRAM is None, reason="WARDROUND_VLLM names no vllm program")
patient = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def served_model(tmp_path_factory: pytest.TempPathFactory, tiny_study: dict[str, Any]) -> Path:
    """As `tiny_model`, with heads of 32: vLLM has none smaller on a CPU."""
    return answering_model(tmp_path_factory.mktemp("served-model"), tiny_study, hidden=64)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, make_study: Callable[..., Study], served_model: Path
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    with serving(VLLM, str(served_model), make_study(), folder / "log") as (_, place):
        yield Server(place, folder / "weights")


@needs_vllm
@patient
@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_server_samples_from_the_weights_that_it_was_sent(
    make_study: Callable[..., Study],
    questions: pl.DataFrame,
    served_model: Path,
    server: Server,
    trainable: str,
) -> None:
    """Greedy tokens and log-probabilities are the learner's own, before and after the weights change."""
    policy = load_policy(make_study(trainable), served_model)
    texts = [policy.prompt_text(s, p) for s, p in questions.head(6).select("system", "prompt").iter_rows()]
    prompts = policy.encode(texts)
    # Of LoRA, B alone is trained, and begins at 0.
    change = 0.03 if trainable == "all" else 0.3
    said = []
    for seed in (None, 1, 2):
        if seed is not None:
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in trainable_parameters(policy).values():
                    parameter.add_(change * torch.randn_like(parameter))
        server.load(policy.model, Accelerator(cpu=True))
        want = sample(policy.model, prompts, 1, 20, 0.0, policy.eos, policy.pad)
        got = server.sample(prompts, [1] * len(prompts), 20, 0.0, policy.eos)
        assert [completion.ids for completion in got] == want
        said.append(want)
        torch.manual_seed(5)
        drawn = server.sample(prompts, [1, 2, 3, 4, 5, 6], 20, 0.7, policy.eos)
        asked = [prompt for number, prompt in enumerate(prompts) for _ in range(number + 1)]
        for prompt, completion in zip(asked, drawn, strict=True):
            assert completion.logps == pytest.approx(learner_logps(policy, prompt, completion.ids, 0.7), abs=1e-4)
        torch.manual_seed(5)
        again = server.sample(prompts, [1, 2, 3, 4, 5, 6], 20, 0.7, policy.eos)
        assert [completion.ids for completion in again] == [completion.ids for completion in drawn]
    assert said[0] != said[1] != said[2]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


@needs_vllm
@patient
@pytest.mark.slow
def test_steps_on_a_servers_completions(
    make_study: Callable[..., Study], questions: pl.DataFrame, served_model: Path, server: Server, tmp_path: Path
) -> None:
    """In this process and in two under ZeRO stage 3, which gather each step's weights for the server."""
    study = make_study(dynamic_sampling=1, learning_rate=1e-3)

    def steps(folder: Path) -> tuple[dict[str, Tensor], LocalResult]:
        policy = load_policy(study, served_model)
        result = LocalTrainer(policy, study, questions, "somewhere", server=server).run(0, 2, folder)
        return trainable_state(policy), result

    before = trainable_state(load_policy(study, served_model))
    (first, told), (second, again) = steps(tmp_path / "first"), steps(tmp_path / "second")
    assert len(told.mismatch) == 2 and 0 < max(told.mismatch) < 1e-4
    assert told.rewards == again.rewards and any(share > 0 for share in told.informative)
    assert 0 == distance(first, second) < distance(first, before)
    asked = job(study, served_model, questions, tmp_path / "job", server=str(server.place))
    shared, result = run_job(ZERO, tmp_path / "job", asked, before)
    assert result.rewards == told.rewards and max(result.mismatch) < 1e-4
    assert distance(shared, first) < 1e-3 * distance(first, before)


@needs_vllm
@patient
@pytest.mark.slow
def test_a_job_has_its_own_server(
    make_study: Callable[..., Study], questions: pl.DataFrame, served_model: Path, tmp_path: Path
) -> None:
    study = make_study("lora", learning_rate=1e-3)
    policy = load_policy(study, served_model)
    before = trainable_state(policy)
    asked = job(study, served_model, questions, tmp_path)
    after, result = run_job(PLAIN, tmp_path, asked, before, vllm=VLLM)
    assert len(result.mismatch) == 2 and max(result.mismatch) < 1e-4
    assert 0 < distance(after, before)
    assert not (tmp_path / "sampler").exists() and "Application startup complete" in (tmp_path / SERVER_LOG).read_text()
