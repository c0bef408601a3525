"""A run's model as a folder that plain transformers (or PEFT) loads, with a card that says where it comes from."""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from common.errors import UserError
from common.model import BUILT_IN
from common.models.policy import Policy, load_policy, load_trainable
from common.study import Study
from common.update.tensors import sha256
from server.jobs import base_model
from server.round_store import Checkpoint, RoundStore
from server.run_folder import RunFolder, check_writable, read_json
from server.workers import Job

Form = Literal["model", "adapter"]
MINIMUM_PATIENTS = 10
"""A site with fewer patients is listed without its numbers."""


def export(folder: RunFolder, job: Job, number: int | None, form: Form, place: Path) -> Path:
    """Write the trained model of one finished round.

    Args:
        job: which arm of which seed (and, of the arm `local`, whose model).
        number: a round; the last finished one unless given.
        form: `model` for whole weights (adapters are merged), `adapter` for LoRA factors alone.

    Returns:
        `place`, which must not exist or be empty.

    Raises:
        UserError: no such checkpoint; an adapter is asked of an all-parameter study; the place is in use.
    """
    study = folder.study().with_seed(job.seed)
    lora = study.model.trainable == "lora"
    if form == "adapter" and not lora:
        raise UserError("This study trains all parameters; there is no adapter.", "Export the whole model.")
    if form == "adapter" and study.model.lora.average == "residual":
        raise UserError("The frozen weights were corrected too: the adapter fits no other.", "Export the whole model.")
    checkpoint = find(RoundStore(folder.arm(job.seed, job.arm, job.site)), number)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place}: there is something here already.", "Give --to a new folder.")
    base = base_model(folder, job.seed)
    policy = load_policy(study, base)
    load_trainable(policy, checkpoint.model)
    check_writable(place, need=size(policy), option="--to")
    model: Any = policy.model
    if lora and form == "model":
        model = model.merge_and_unload()
    model.save_pretrained(place)
    policy.tokenizer.save_pretrained(place)
    ModelCard(card(folder, study, checkpoint, job, form)).save(place / "README.md")
    return place


def find(store: RoundStore, number: int | None) -> Checkpoint:
    kept = store.kept()
    if not kept or (number is not None and number not in kept):
        asked = "a finished round" if number is None else f"round {number}"
        known = f"The models that are kept: {', '.join(map(str, kept))}" if kept else "Choose another arm, seed or site"
        raise UserError(f"{store.folder}: there is no model of {asked}.", f"{known}.")
    return store.load(kept[-1] if number is None else number)


def size(policy: Policy) -> int:
    """Bytes of the weights."""
    return sum(p.numel() * p.element_size() for p in policy.model.parameters())


def card(folder: RunFolder, study: Study, checkpoint: Checkpoint, job: Job, form: Form) -> str:
    """The model card: what it is, what it learned from (counts only), how it did, what made it."""
    data = ModelCardData(
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["wardround", "grpo", job.arm],
        # A hub refuses the name of a folder.
        base_model=None if study.model.base == BUILT_IN or Path(study.model.base).is_dir() else study.model.base,
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(folder.about()["versions"].items()))
    whose = f"{job.arm} {job.site}".strip()
    lines = [
        "---",
        data.to_yaml(),
        "---",
        f"# {study.title or study.name}: {whose}, round {checkpoint.round}",
        "",
        f"Trained by GRPO on questions from clinical registries, {checkpoint.step} optimiser steps a site. It answers",
        "multiple-choice questions about a record; the letter stands in `\\boxed{}`. Not a medical device.",
        "",
        f"- study `{study.name}`, SHA-256 `{study.hash}`, seed {study.seed}",
        f"- base model: {'the built-in one' if study.model.base == BUILT_IN else study.model.base}",
        f"- weights SHA-256 of the trained part: `{sha256(checkpoint.model)}`",
        f"- made with {versions}",
        "",
        "## Data",
        "",
        *data_lines(study, checkpoint),
        "",
        "## Figures",
        "",
        *figure_lines(folder, job.arm),
        "",
    ]
    return "\n".join(lines)


def data_lines(study: Study, checkpoint: Checkpoint) -> list[str]:
    """Patients and questions by site as the last round reported them; small numbers are withheld."""
    given = checkpoint.notes.get("contributions", {})
    lines = ["| site | training patients | training questions |", "|---|---|---|"]
    for site in study.sites.train:
        figures = given.get(site)
        if figures is None:
            lines.append(f"| {site} | not reported | not reported |")
        elif figures["patients"] < MINIMUM_PATIENTS:
            lines.append(f"| {site} | fewer than {MINIMUM_PATIENTS} | withheld |")
        else:
            lines.append(f"| {site} | {figures['patients']:.0f} | {figures['questions']:.0f} |")
    return lines


def figure_lines(folder: RunFolder, arm: str) -> list[str]:
    """Accuracy of the arm at the run's end, from `result.json`."""
    path = folder.path / "result.json"
    found = read_json(path)["arms"].get(arm, {}) if path.exists() else {}
    if not found:
        return ["None: the run has not been evaluated yet."]
    lines = ["| split | accuracy | 95 % interval | patients |", "|---|---|---|---|"]
    for split, figures in found.items():
        low, high = figures["ci95"]
        accuracy = f"{100 * figures['accuracy']:.1f} % | {100 * low:.1f} to {100 * high:.1f} %"
        lines.append(f"| {split.replace('_', ' ')} | {accuracy} | {figures['n_patients']} |")
    lines += ["", "Of the run's last round, mean over its seeds; intervals by a bootstrap over patients."]
    return lines
