"""What a study file may say, and how a wrong one is told: the field, the value, the remedy."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.study import parse_study, read_study

STUDIES = Path(__file__).parents[2] / "studies"


def values(**tables: Any) -> dict[str, Any]:
    return {"name": "s", "sites": {"train": ["a", "b"], "public": ["p"]}} | tables


@pytest.mark.parametrize(
    ("tables", "what", "remedy"),
    [
        ({"colour": 1}, "there is no setting 'colour'", "Remove it"),
        ({"name": "A b"}, "name = 'A b'", "Correct"),
        ({"rounds": {"rounds": "3"}}, "rounds.rounds = '3'", "Correct"),
        ({"rounds": {"rounds": True}}, "rounds.rounds = True", "Correct"),
        ({"rounds": {"rounds": 0}}, "rounds.rounds = 0", "Correct"),
        ({"rounds": {"deadline_s": float("inf")}}, "rounds.deadline_s = inf", "Correct"),
        ({"grpo": {"learning_rate": float("nan")}}, "grpo.learning_rate = nan", "Correct"),
        ({"grpo": 3}, "grpo = 3", "Correct"),
        ({"sites": {"train": "a"}}, "sites.train = 'a'", "Correct"),
        ({"sites": {"train": ["../a"], "public": ["p"]}}, "sites.train.0 = '../a'", "Correct"),
        ({"sites": {"public": ["p"]}}, "'sites.train' is missing", "Add it"),
        ({"sites": {"train": ["a"], "public": ["a"]}}, "sites: site 'a' stands twice", "Give each site one role."),
        ({"sites": {"train": ["a"]}}, "model.base is 'built-in' but sites.public is empty", "Name one in sites.public"),
        ({"rounds": {"quorum": 3}}, "rounds.quorum is 3 but sites.train names 2", "Lower the quorum"),
        ({"model": {"builtin": {"hidden": 65}}}, "model.builtin: hidden 65", "Choose for example"),
        ({"model": {"trainable": "lora", "lora": {"freeze_a": False}}}, "model.lora.freeze_a is false", "Set freeze_a"),
    ],
)  # fmt: skip
def test_a_wrong_study_names_field_value_and_remedy(tables: dict[str, Any], what: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_study(values(**tables), "s.toml")
    assert caught.value.what.startswith(f"s.toml: {what}")
    assert caught.value.remedy.startswith(remedy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.toml")))
def test_a_shipped_study_is_the_same_after_writing_it_out(name: str, tmp_path: Path) -> None:
    study = read_study(STUDIES / name)
    (tmp_path / name).write_text(study.to_toml())
    assert read_study(tmp_path / name) == study
    assert read_study(tmp_path / name).hash == study.hash


def test_where_a_laptop_finds_its_sites_is_not_what_they_approve() -> None:
    here, there = (parse_study(values(simulation={"site_configs": place}), "s") for place in ("here", "there"))
    assert here.hash == there.hash
    assert here.with_seed(2).hash != here.hash
