"""Studies that a sum of updates cannot carry, or that would protect nobody, are refused when they are read."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.keys import make_site_key
from common.secure_sum import coding_of, session_of, weight_of
from common.study import parse_study

SITES = ["north", "south", "east", "west"]
VALUES: dict[str, Any] = {
    "name": "summed",
    "sites": {"train": SITES, "public": ["open"]},
    "update": {"steps": ["difference", "clip"], "clip_norm": 1.0},
    "secure_sum": {"threshold": 3},
}
SUM = VALUES["secure_sum"]


def test_a_study_with_it_is_read_and_a_study_without_it_keeps_its_hash() -> None:
    study = parse_study(VALUES, "test")
    plain = parse_study({name: table for name, table in VALUES.items() if name != "secure_sum"}, "test")
    assert "secure_sum" in study.canonical() and "secure_sum" not in plain.canonical()
    assert study.secure_sum is not None and study.secure_sum.needed == 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sites": {"train": ["a", "b"], "public": ["open"]}, "secure_sum": {"threshold": 2}}, "sites.train names 2"),
        ({"secure_sum": {"threshold": 2}}, "half of 4 sites or fewer"),
        ({"secure_sum": {"threshold": 5}}, "more than the 4 training sites"),
        ({"secure_sum": {"threshold": 3, "minimum": 5}}, "secure_sum.minimum is 5"),
        ({"rounds": {"quorum": 2}}, "a round may have 2 updates"),
        ({"update": {}}, r"update.steps is \['delta'\]"),
        ({"update": {"steps": ["difference"]}}, "update.steps"),
        ({"update": {"steps": ["difference", "clip", "int8"], "clip_norm": 1.0}}, "'int8'"),
        ({"update": {"steps": ["difference", "clip", "topk"], "clip_norm": 1.0, "topk": 0.1}}, "'topk'"),
        ({"rounds": {"fold": {"name": "median"}}}, "rounds.fold is {'name': 'median'}"),
        ({"rounds": {"fold": {"name": "krum"}}, "sites": {"train": list("abcde"), "public": ["open"]}}, "krum"),
        ({"rounds": {"fold": {"name": "mean", "max_norm": 1.0}}}, "max_norm"),
        ({"model": {"trainable": "lora", "lora": {"average": "residual"}}}, "'residual' is not linear"),
        ({"model": {"trainable": "lora", "lora": {"average": "separate"}}}, "'separate' is not linear"),
        ({"rounds": {"weights": "informative"}}, "'informative' is not known before"),
        ({"rounds": {"weights": "patients"}}, "secure_sum.largest_weight is not given"),
        ({"secure_sum": {**SUM, "largest_weight": 100}}, "largest_weight is given but"),
    ],
)
def test_what_a_sum_cannot_carry_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse_study({**VALUES, **changed}, "test")


@pytest.mark.parametrize("average", ["frozen-a", "alternating"])
def test_linear_averages_of_adapters_and_other_outer_steps_and_the_gate_are_taken(average: str) -> None:
    rounds = {"outer": {"name": "nesterov"}, "gate": {}, "quorum": 3}
    parse_study({**VALUES, "model": {"trainable": "lora", "lora": {"average": average}}, "rounds": rounds}, "test")


def keys_of(folder: Path, sites: list[str]) -> dict[str, str]:
    return {site: make_site_key(folder / site)[1].read_text().strip() for site in sites}


def test_the_keys_are_those_of_the_training_sites_each_with_its_own(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, SITES)
    study = parse_study({**VALUES, "secure_sum": {**SUM, "keys": keys}}, "test")
    assert study.secure_sum is not None and set(study.secure_sum.identities()) == set(SITES)
    assert study.hash != parse_study(VALUES, "test").hash, "approving a study pins its keys"
    for wrong, named in (
        ({site: keys[site] for site in SITES[:3]}, "secure_sum.keys names"),
        ({**keys, "south": keys["north"]}, "one key twice"),
        ({**keys, "south": keys["north"] + " another-comment"}, "one key twice"),
        ({**keys, "south": "ssh-rsa AAAA"}, "site 'south' is not a public key"),
    ):
        with pytest.raises(UserError, match=named):
            parse_study({**VALUES, "secure_sum": {**SUM, "keys": wrong}}, "test")


def test_the_clip_norm_and_the_number_of_sites_size_the_encoding() -> None:
    study = parse_study(VALUES, "test")
    assert coding_of(study).sites == 4 and 1.0 < coding_of(study).bound < 1.00001
    assert session_of(study, "run", 2, 1).sites == tuple(sorted(SITES))


def test_weights_are_shares_of_the_largest() -> None:
    assert weight_of(parse_study(VALUES, "test"), {}) == 1.0
    values = {**VALUES, "rounds": {"weights": "patients"}, "secure_sum": {**SUM, "largest_weight": 400}}
    assert weight_of(parse_study(values, "test"), {"patients": 100, "questions": 4000}) == 0.25
