"""What `check` counts, and what of it the door lets others see."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoTokenizer

from client.checking import by_task, by_thumb, by_tokenizer, feature_lines, summarise
from client.door import Door
from client.policy import Policy
from client.summary import share, summary_text
from common.errors import UserError
from common.models.policy import load_policy
from common.questions.building import SCHEMA
from common.registry.config import Feature, Outcome
from common.registry.registry import Registry
from common.study import parse_study

FEATURES = (
    Feature(column="age", name="Age", section="S", kind="number"),
    Feature(column="na@0", name="Sodium", section="Hours 0 to 8", kind="number", variable="na"),
    Feature(column="na@8", name="Sodium", section="Hours 8 to 16", kind="number", variable="na"),
    Feature(column="rare", name="Rare", section="S", kind="number"),
    Feature(column="end", name="End", section="S", kind="category", known="outcome", ask=False),
)


@pytest.fixture
def ward() -> Registry:
    """57 patients; all have an age, 30 a sodium at one time or the other, 4 a rare value; 5 died."""
    frame = pl.DataFrame(
        {
            "patient": [f"p{n}" for n in range(57)],
            "age": [float(n) for n in range(57)],
            "na@0": [140.0 if n < 20 else None for n in range(57)],
            "na@8": [141.0 if 10 <= n < 30 else None for n in range(57)],
            "rare": [1.0 if n < 4 else None for n in range(57)],
            "end": ["died" if n < 5 else "home" for n in range(57)],
        }
    )
    outcome = Outcome(column="end", question="How will it end?", at="baseline", values={"died": "yes", "home": "no"})
    return Registry("ward", FEATURES, frame, outcomes=(outcome,))


def questions(prompts: list[str]) -> pl.DataFrame:
    rows = [
        {"question_id": f"q{n}", "patient": f"p{n % 3}", "task": "masked_value", "feature": "age", "prompt": text,
         "system": "Be brief."}
        for n, text in enumerate(prompts)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows[0]})


def test_a_variable_of_several_times_is_one_line() -> None:
    lines = feature_lines(FEATURES)
    assert [line[1] for line in lines] == ["Age", "Sodium", "Rare", "End"]
    assert lines[1][0] == "Hours 0 to 8 and 1 more" and lines[3][5] == "shown only"


def test_lengths_are_counted_and_those_beyond_the_limit(tmp_path: Path) -> None:
    asked = questions([" " * (4 * n - 9) for n in range(3, 103)])  # 3 to 102 tokens with the system text
    (found,) = by_task(asked, by_thumb, limit=100)
    assert (found.questions, found.patients, found.longest, found.too_long) == (100, 3, 102, 2)
    assert found.median == 52 and found.most == 97


def test_the_studys_tokenizer_counts_what_training_counts(tiny_model: Path, tiny_study: dict[str, Any]) -> None:
    values = {**tiny_study, "model": {"base": str(tiny_model)}, "sites": {"train": ["a"]}}
    study = parse_study(values, "test")
    asked = questions(["[Patient]\nAge (years): 85\n\nQuestion: What?\nA. 1\nB. 2", "short"])
    policy = load_policy(study, tiny_model)
    texts = [policy.prompt_text(*row) for row in asked.select("system", "prompt").iter_rows()]
    assert by_tokenizer(tiny_model, study)(asked).tolist() == [len(ids) for ids in policy.encode(texts)]
    assert AutoTokenizer.from_pretrained(str(tiny_model)).chat_template is not None


def test_a_summary_holds_no_count_of_few_patients(ward: Registry) -> None:
    asked = by_task(questions(["text"] * 40), by_thumb, limit=100)
    text = summary_text(summarise(ward, asked), least=10)
    assert text.splitlines() == [
        "Counts are rounded down to a multiple of 10.",
        "patients: 50",
        "feature: Age: 50 patients",
        "feature: Sodium: 30 patients",
        "feature: withheld, fewer than 10 patients: Rare",
        "outcome: How will it end? no: 50 patients",
        "outcome: withheld, fewer than 10 patients: 1 answers",
        "task: withheld, fewer than 10 patients: masked_value",
    ]


def test_a_site_with_too_few_patients_shares_nothing(ward: Registry, tmp_path: Path) -> None:
    door = Door("ward", Policy(minimum_patients=58), tmp_path / "state")
    with pytest.raises(UserError, match="too few for a summary"):
        share(door, "", summarise(ward, []), tmp_path / "summary.txt")
    assert not (tmp_path / "summary.txt").exists()
    assert '"kind": "Refused"' in (door.state / "audit.jsonl").read_text()
