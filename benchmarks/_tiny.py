"""A study that takes seconds, and a model for it that has something to learn from."""

from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "name": "tiny",
    "questions": {"per_patient": 2},
    "grpo": {"group_size": 4, "prompts_per_step": 4, "learning_rate": 0.01, "max_completion_tokens": 6},
    "rounds": {"rounds": 1, "local_steps": 2, "validation_patients": 12},
    "evaluation": {"patients_per_site": 12, "questions_per_patient": 1, "max_completion_tokens": 6},
}
"""Values of a study; `sites` is for whoever uses it to name."""


def answering_model(folder: Path, study: dict[str, Any], hidden: int) -> Path:
    """Train a model of one layer and two heads to answer with letters, and save it.

    So some of its answers are right, and GRPO has something to learn from.
    """
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from common.models.tokenizer import train_tokenizer
    from common.registry.config import read_registry_config
    from common.registry.registry import load_registry
    from common.study import parse_study
    from common.tasks.site_questions import site_questions

    shipped = Path(__file__).parent.parent / "site_configs" / "synthetic" / "synthetic-public.toml"
    values = {**study, "sites": {"train": ["somewhere"], "public": ["synthetic-public"]}}
    questions = site_questions(load_registry(read_registry_config(shipped)), parse_study(values, "tiny")).train
    texts = [f"{prompt}\n\\boxed{{{'ABCDE'[n % 5]}}}" for n, prompt in enumerate(questions["prompt"].head(256))]
    tokenizer = train_tokenizer(texts, 512)
    assert tokenizer.pad_token_id is not None and tokenizer.eos_token_id is not None
    torch.manual_seed(7)
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Phi3ForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        batch = [text + tokenizer.eos_token for text in texts[8 * step % 256 :][:8]]
        ids = tokenizer(batch, padding=True, add_special_tokens=False, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, :-4] = -100  # "\\n\\boxed{", the letter, "}" and the end
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
