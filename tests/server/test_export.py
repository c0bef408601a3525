"""An exported folder loads without us and gives the trained model's answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from common.grpo.generation import sample
from common.models.policy import Policy, load_policy, load_trainable
from common.models.transfer import folder_sha256
from common.study import Study
from server.export import export
from server.frames import build_frames
from server.round_store import RoundStore
from server.run_folder import RunFolder, create_run, write_json
from server.simulation import simulate_federated
from server.workers import Job

FEDERATED = Job(1, "federated")
TOKENS = 6


def trained(study: Study, model: Path, folder: Path) -> RunFolder:
    run = create_run(folder / "runs", study, [1], ["federated"], started=0.0)
    write_json(run.seed(1) / "base.json", {"folder": str(model), "sha256": folder_sha256(model)})
    place = run.arm(1, "federated")
    simulate_federated(run.path / "study.toml", study, "export", model, place, run.events)
    return run


def ours(run: RunFolder, study: Study, model: Path, prompts: list[list[int]]) -> list[str]:
    policy: Policy = load_policy(study, model)
    load_trainable(policy, RoundStore(run.arm(1, "federated")).load(study.rounds.rounds).model)
    policy.model.eval()
    sampled = sample(policy.model, prompts, 1, TOKENS, 0.0, policy.eos, policy.pad)
    return policy.tokenizer.batch_decode(sampled, skip_special_tokens=True)


def plain(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    texts = []
    for ids in prompts:
        written = model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
        )
        texts.append(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ({}, "model"),
        ({"trainable": "lora"}, "model"),
        ({"trainable": "lora"}, "adapter"),
        ({"trainable": "lora", "lora": {"average": "residual"}}, "model"),
    ],
    ids=["all", "merged", "adapter", "corrected"],
)
def test_the_folder_answers_as_the_trained_model(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path, model: dict[str, Any], form: Any
) -> None:
    study = small_study(model={"base": str(tiny_model), **model})
    run = trained(study, tiny_model, tmp_path)
    place = export(run, FEDERATED, None, form, tmp_path / "out")
    kind: Any = AutoPeftModelForCausalLM if form == "adapter" else AutoModelForCausalLM
    loaded, tokenizer = kind.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    questions = build_frames(study, tmp_path / "questions").test("held_out").head(12)
    texts = [f"{system}\n\n{prompt}\n" for system, prompt in questions.select("system", "prompt").iter_rows()]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    answers = plain(loaded, tokenizer, prompts)
    assert answers == ours(run, study, tiny_model, prompts)
    untrained = load_policy(study, tiny_model)
    before = sample(untrained.model, prompts, 1, TOKENS, 0.0, untrained.eos, untrained.pad)
    assert answers != untrained.tokenizer.batch_decode(before, skip_special_tokens=True), "nothing was learned"

    card = (place / "README.md").read_text()
    assert study.hash in card and "round 2" in card
    patients = RoundStore(run.arm(1, "federated")).load(2).notes["contributions"]["a"]["patients"]
    assert f"| a | {patients:.0f} |" in card


def test_what_cannot_be_exported_is_a_sentence(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study()
    run = trained(study, tiny_model, tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="trains all parameters"):
        export(run, FEDERATED, None, "adapter", tmp_path / "out")
    with pytest.raises(UserError, match="no model of round 9"):
        export(run, FEDERATED, 9, "model", tmp_path / "out")
    with pytest.raises(UserError, match="no model of a finished round"):
        export(run, Job(1, "centralized"), None, "model", tmp_path / "out")
    with pytest.raises(UserError, match="something here already"):
        export(run, FEDERATED, None, "model", taken)
    assert not (tmp_path / "out").exists() and (taken / "thesis.txt").exists()


def test_an_adapter_whose_frozen_weights_were_corrected_is_not_exported_alone(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study(model={"base": str(tiny_model), "trainable": "lora", "lora": {"average": "residual"}})
    run = create_run(tmp_path / "runs", study, [1], ["federated"], started=0.0)
    with pytest.raises(UserError, match="frozen weights were corrected"):
        export(run, FEDERATED, None, "adapter", tmp_path / "out")


def test_a_small_site_is_listed_without_its_numbers(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study()
    run = trained(study, tiny_model, tmp_path)
    store = RoundStore(run.arm(1, "federated"))
    last = store.load(2)
    last.notes["contributions"]["b"]["patients"] = 3.0
    store.save(last)
    card = (export(run, FEDERATED, 2, "model", tmp_path / "out") / "README.md").read_text()
    assert "| b | fewer than 10 | withheld |" in card
