"""Build the built-in small model: Phi-3 architecture, own tokenizer, warmed up on exercises; cached per machine."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from common.grpo.head import head
from common.grpo.prefix import Prefix, expand, left_pad, read_prompts
from common.models.tokenizer import END, PIECES, SYSTEM, TEMPLATE, train_tokenizer
from common.models.warmup import Exercise, exercises
from common.registry.registry import Registry
from common.study import CODEBOOK_FILE, Study

POOL = 4000
"""Synthetic records; each is seen a few times."""
INITIALIZER_SD = 0.1
"""About 1/sqrt(hidden): at the usual 0.02, attention stays uniform for most of a short warm-up."""
ROPE_THETA = 100.0
"""Prompts are tens of tokens, not thousands: slow rotations are of no use, and "the token before" must be sharp."""
PARTS = 3
"""A warm-up step's questions go through the model in so many parts, by length."""
Progress = Callable[[int, int], None]
VERSION = 2
"""Raised when the code below changes what it builds, so that old caches are not taken."""


def cache_key(study: Study, public: Registry) -> str:
    """SHA-256 over everything that decides the built model."""
    frame = public.frame
    questions = study.questions.model_dump()
    if study.questions.codebook_file is not None:
        # Its hash stands beside it; where the file lies decides nothing, and each run has a copy of its own.
        questions["codebook"] = CODEBOOK_FILE
    digest = hashlib.sha256(json.dumps(study.model.builtin.model_dump(), sort_keys=True).encode())
    digest.update(json.dumps(questions, sort_keys=True).encode())
    digest.update(json.dumps([f.model_dump() for f in public.features], sort_keys=True).encode())
    digest.update(json.dumps([VERSION, POOL, PIECES, TEMPLATE, INITIALIZER_SD, ROPE_THETA, torch.__version__]).encode())
    digest.update(frame.write_csv().encode())
    return digest.hexdigest()


def build_builtin(study: Study, public: Registry, cache: Path, progress: Progress | None = None) -> Path:
    """The built-in model's folder in `cache` (config, tokenizer, weights), built if it is not there yet.

    Args:
        public: the declared public cohort.
        progress: called with (steps done, steps in all).
    """
    folder = cache / cache_key(study, public)[:24]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    drill = exercises(public, study, POOL, study.model.builtin.seed)
    texts = [SYSTEM + e.record + q + "\n" + a + END for e in drill for q, a in e.questions]
    tokenizer = train_tokenizer(texts, study.model.builtin.vocabulary)
    model = warm_up(study, tokenizer, drill, progress)
    temporary = Path(tempfile.mkdtemp(dir=cache))
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    try:
        os.replace(temporary, folder)
    except OSError:
        # Another process built the same model meanwhile; its folder is equal.
        shutil.rmtree(temporary)
    return folder


def write_untrained(study: Study, texts: list[str], folder: Path) -> None:
    """A model of the built-in one's shape that has learned nothing, for trying out a machine.

    Args:
        texts: questions; its tokenizer is trained on them.
        folder: a new one.
    """
    tokenizer = train_tokenizer([SYSTEM + text + END for text in texts], study.model.builtin.vocabulary)
    new_model(study, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def new_model(study: Study, tokenizer: PreTrainedTokenizerFast) -> Phi3ForCausalLM:
    spec = study.model.builtin
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        intermediate_size=4 * spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=INITIALIZER_SD,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    torch.manual_seed(spec.seed)
    return Phi3ForCausalLM(config)


def warm_up(
    study: Study, tokenizer: PreTrainedTokenizerFast, drill: list[Exercise], progress: Progress | None
) -> Phi3ForCausalLM:
    """Supervised steps on answers alone; each record is computed once for all of its questions."""
    spec = study.model.builtin
    model = new_model(study, tokenizer)
    model.train()

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    records = encode([SYSTEM + e.record for e in drill])
    asked = encode([q + "\n" for e in drill for q, _ in e.questions])
    answers = encode([a + END for e in drill for _, a in e.questions])
    starts = np.cumsum([0] + [len(e.questions) for e in drill])
    pad = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.warmup_lr, weight_decay=0.01)
    rng = np.random.default_rng(spec.seed)
    for step in range(spec.warmup_steps):
        # A short rise, then a cosine down to a twentieth.
        rise = min(1.0, (step + 1) / 50)
        fall = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / spec.warmup_steps))
        optimizer.param_groups[0]["lr"] = spec.warmup_lr * rise * fall
        batch = rng.choice(len(drill), spec.warmup_batch, replace=False)
        ids, mask = left_pad([records[i] for i in batch], pad, torch.device("cpu"))
        prefix = read_prompts(model, ids, mask)
        questions = [(row, k) for row, i in enumerate(batch) for k in range(starts[i], starts[i + 1])]
        # Questions of like length go together, so that little is spent on padding.
        questions.sort(key=lambda question: len(asked[question[1]]) + len(answers[question[1]]))
        parts = [
            questions[i : i + len(questions) // PARTS + 1]
            for i in range(0, len(questions), len(questions) // PARTS + 1)
        ]
        scored = sum(len(answers[k]) for _, k in questions)
        losses = [answer_loss(model, prefix, [(row, asked[k], answers[k]) for row, k in part], pad) for part in parts]
        loss = torch.stack(losses).sum() / scored
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress:
            progress(step + 1, spec.warmup_steps)
    model.eval()
    return model


def answer_loss(
    model: Phi3ForCausalLM, prefix: Prefix, questions: list[tuple[int, list[int], list[int]]], pad: int
) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens; each question stands on the record that it names.

    Args:
        questions: (row of the record in `prefix`, question tokens, answer tokens).
    """
    width = max(len(asked) + len(answer) for _, asked, answer in questions)
    ids = torch.full((len(questions), width), pad)
    label = torch.full((len(questions), width), -100)
    for line, (_, asked, answer) in enumerate(questions):
        ids[line, : len(asked) + len(answer)] = torch.tensor(asked + answer)
        label[line, len(asked) - 1 : len(asked) + len(answer) - 1] = torch.tensor(answer)
    rows = torch.tensor([row for row, _, _ in questions])
    hidden = model.model(
        input_ids=ids,
        attention_mask=torch.cat([prefix.mask[rows], torch.ones_like(ids)], dim=1),
        position_ids=prefix.mask.sum(-1)[rows, None] + torch.arange(width),
        past_key_values=expand(model, prefix, rows),
        use_cache=True,
    ).last_hidden_state
    scored = label != -100
    return cross_entropy(head(model, hidden[scored]), label[scored], reduction="sum")
