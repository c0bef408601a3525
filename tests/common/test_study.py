"""What a study file may say, and how a wrong one is told: the field, the value, the remedy."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import UserError
from common.study import Questions, parse_study, read_study

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
        (
            {
                "model": {"trainable": "lora", "lora": {"average": "separate"}},
                "rounds": {"outer": {"name": "nesterov"}},
            },
            "model.lora.average 'separate' is defined by the sites' mean alone",
            "Set rounds.fold",
        ),
        (
            {
                "model": {"trainable": "lora", "lora": {"average": "residual"}},
                "rounds": {"fold": {"name": "mean", "max_norm": 1.0}},
            },
            "model.lora.average 'residual' is defined by the sites' mean alone",
            "Set rounds.fold",
        ),
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


def test_the_papers_construction_has_no_common_codebook() -> None:
    with pytest.raises(ValidationError, match="set codebook = 'site' or fidelity = 'strict'"):
        Questions(fidelity="paper", codebook="federated")


def test_a_codebooks_hash_needs_a_codebook_file() -> None:
    with pytest.raises(ValidationError, match="codebook_sha256 belongs to a codebook file"):
        Questions(codebook="federated", codebook_sha256="0" * 64)


@pytest.mark.parametrize(
    ("text", "named", "said"),
    [
        ("mi_threshold = 0.5", None, "this is no codebook: it has no sha256"),
        (f'sha256 = "{"a" * 64}"', "b" * 64, "not the codebook that the study names"),
    ],
)
def test_a_codebook_file_is_looked_at_when_the_study_is_read(
    tmp_path: Path, text: str, named: str | None, said: str
) -> None:
    (tmp_path / "book.toml").write_text(text)
    more = f'codebook_sha256 = "{named}"\n' if named else ""
    study = tmp_path / "study.toml"
    study.write_text(f'name = "x"\nmodel.base = "m"\nsites.train = ["a"]\n[questions]\ncodebook = "book.toml"\n{more}')
    with pytest.raises(UserError, match=said):
        read_study(study)


def test_what_a_codebook_file_holds_is_approved_and_not_where_it_lies(tmp_path: Path) -> None:
    for name, digest in (("one.toml", "a"), ("same.toml", "a"), ("other.toml", "b")):
        (tmp_path / name).write_text(f'sha256 = "{digest * 64}"')
    hashes = []
    for name in ("one.toml", "same.toml", "other.toml"):
        study = tmp_path / "study.toml"
        study.write_text(f'name = "x"\nmodel.base = "m"\nsites.train = ["a"]\n[questions]\ncodebook = "{name}"\n')
        found = read_study(study)
        assert parse_study(found.canonical(), "the message").hash == found.hash
        hashes.append(found.hash)
    assert hashes[0] == hashes[1] != hashes[2]
