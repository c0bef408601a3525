"""The built-in model: built once, the same wherever it is built, and anew when anything that makes it changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from common.grpo.prefix import left_pad, read_prompts
from common.model import Builtin
from common.models import builtin
from common.models.builtin import build_builtin, cache_key
from common.models.policy import load_policy, trainable_state
from common.models.tokenizer import END, SYSTEM, train_tokenizer
from common.models.transfer import folder_sha256
from common.models.warmup import exercises
from common.registry.registry import Registry
from common.study import Study


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "POOL", 40)


Make = Callable[..., Study]


def test_built_once(builtin_study: Make, public: Registry, tmp_path: Path) -> None:
    study = builtin_study()
    seen: list[tuple[int, int]] = []
    folder = build_builtin(study, public, tmp_path / "cache", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_builtin(study, public, tmp_path / "cache", lambda done, total: seen.append((done, total))) == folder
    assert len(seen) == 3, "it was built again"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name], "something was left behind"


def test_built_twice_it_is_the_same_model(builtin_study: Make, public: Registry, tmp_path: Path) -> None:
    study = builtin_study()
    folders = [build_builtin(study, public, tmp_path / name) for name in ("here", "there")]
    torch.rand(3)
    assert folders[0].name == folders[1].name
    assert folder_sha256(folders[0]) == folder_sha256(folders[1])


def test_the_warm_up_and_its_seed_make_the_model(builtin_study: Make, public: Registry, tmp_path: Path) -> None:
    variants = [builtin_study(), builtin_study(warmup_steps=4), builtin_study(warmup_lr=1e-3), builtin_study(seed=2)]
    hashes = {folder_sha256(build_builtin(study, public, tmp_path)) for study in variants}
    assert len(hashes) == len(variants)


def test_it_answers_as_a_policy(builtin_study: Make, public: Registry, tmp_path: Path) -> None:
    study = builtin_study()
    policy = load_policy(study, build_builtin(study, public, tmp_path))
    assert not policy.model.training
    assert len(policy.tokenizer) <= study.model.builtin.vocabulary
    assert policy.prompt_text("Any system text.", "[Severity]\nSOFA: 3") == "<|system|>[Severity]\nSOFA: 3\n"
    assert policy.answer_cue == "\n\\boxed{"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trainable_state(policy).values())


OTHER = {"practice_worlds": 3, "lookup_share": 0.5, "warmup_lr": 1e-3, "hidden": 32, "heads": 1, "vocabulary": 401}


def test_the_key_follows_everything_that_makes_the_model(
    builtin_study: Make, public: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = builtin_study()
    keys = [cache_key(study, public)]
    for name in Builtin.model_fields:
        values = study.model.builtin.model_dump()
        keys.append(cache_key(builtin_study(**{name: OTHER.get(name, values[name] + 1)}), public))
    keys.append(cache_key(builtin_study({"questions": {"per_patient": 2, "difficulty": 1.0}}), public))
    keys.append(cache_key(study, replace(public, frame=public.frame.head(599))))
    keys.append(cache_key(study, replace(public, features=public.features[1:])))
    monkeypatch.setattr(builtin, "VERSION", builtin.VERSION + 1)
    keys.append(cache_key(study, public))
    assert len(set(keys)) == len(keys)


def test_the_key_follows_nothing_else(builtin_study: Make, public: Registry) -> None:
    changed = {"grpo": {"learning_rate": 0.5}, "rounds": {"rounds": 9}, "name": "other", "title": "Another"}
    assert cache_key(builtin_study(changed), public) == cache_key(builtin_study(), public)
    here, there, other = (
        cache_key(builtin_study({"questions": {"codebook": place, "codebook_sha256": digest * 64}}), public)
        for place, digest in (("/here/codebook.toml", "0"), ("/there/codebook.toml", "0"), ("/here/codebook.toml", "1"))
    )
    assert here == there != other


def test_a_records_questions_share_it_as_if_each_had_its_own(builtin_study: Make, public: Registry) -> None:
    """The warm-up's loss and gradients are those of record, question and answer read as one row."""
    drill = exercises(public, builtin_study(), 4, seed=1)
    texts = [SYSTEM + e.record + q + "\n" + a + END for e in drill for q, a in e.questions]
    tokenizer = train_tokenizer(texts, 400)
    model = builtin.new_model(builtin_study(), tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    records = [encode(SYSTEM + e.record) for e in drill]
    questions = [(row, encode(q + "\n"), encode(a + END)) for row, e in enumerate(drill) for q, a in e.questions]
    ids, mask = left_pad(records, int(tokenizer.pad_token_id or 0), torch.device("cpu"))
    shared = builtin.answer_loss(model, read_prompts(model, ids, mask), questions, 0)
    whole = torch.zeros(())
    for row, asked, said in questions:
        tokens = torch.tensor([records[row] + asked + said])
        logits = model(input_ids=tokens).logits[0, -len(said) - 1 : -1]
        whole = whole + cross_entropy(logits, torch.tensor(said), reduction="sum")
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-4)
    ours, plain = gradient(shared), gradient(whole)
    assert (ours - plain).norm() <= 1e-5 * plain.norm()
