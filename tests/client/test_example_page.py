"""docs/example_questions.md shows what `wardround-site questions` prints for the shipped configs."""

import re
from pathlib import Path

import pytest

from client.checking import own_study, training_questions
from client.site import read_site
from common.questions.randomness import shuffle
from common.registry.registry import load_registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "example_questions.md").read_text(encoding="utf-8")
CHAPTERS = re.findall(r"`wardround-site questions (\S+) -n (\d+)`(.*?)(?=\n## )", PAGE, re.DOTALL)


def parts(text: str) -> list[str]:
    """Sections of the record, then the question with its choices and answer."""
    return re.split(r"\n+(?=\[|Question: )", text.strip())


def printed(config: str, number: int, task: str) -> list[list[str]]:
    site = read_site(ROOT / config, Path())
    if not Path(site.registry.table.path).exists():
        pytest.skip(f"the data of {config} is not here")
    registry = load_registry(site.registry)
    study = own_study(registry)
    asked = shuffle(training_questions(registry, study, None), study.seed)
    rows = asked.filter(asked["task"] == task).head(number).iter_rows(named=True)
    return [parts(f"{row['prompt']}\nanswer: {'ABCDE'[row['answer']]}. {row['reference']}") for row in rows]


def test_the_page_has_its_chapters() -> None:
    assert [(config, int(number)) for config, number, _ in CHAPTERS] == [
        ("site_configs/ist/ist-italy.toml", 3),
        ("site_configs/eicu/eicu-south.toml", 3),
        ("site_configs/eicu/eicu-midwest.toml", 7),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "number", "chapter"), CHAPTERS, ids=[chapter[0] for chapter in CHAPTERS])
def test_blocks_are_what_the_command_prints(config: str, number: str, chapter: str) -> None:
    blocks = re.findall(r"^(\w+):\n\n```\n(.*?)\n```", chapter, re.DOTALL | re.MULTILINE)
    assert blocks
    made = {task: iter(printed(config, int(number), task)) for task in {task for task, _ in blocks}}
    for task, block in blocks:
        shown = parts(block)
        # In order; the page leaves windows of an hourly record out, but no line of a section that it shows.
        assert any(set(shown) <= set(one) and shown[0] == one[0] and shown[-1] == one[-1] for one in made[task]), block
