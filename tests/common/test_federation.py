"""Update chains and rounds that cannot work are refused when the study is read, with a remedy."""

from typing import Any

import pytest

from common.errors import UserError
from common.study import Study, parse_study


def study(**tables: Any) -> Study:
    values = {"name": "s", "sites": {"train": ["a", "b"]}, "model": {"base": "/m"}}
    return parse_study(values | tables, "test")


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        ({"steps": []}, "must begin with one of delta, difference, sparse-bf16"),
        ({"steps": ["int8"]}, "must begin with"),
        ({"steps": ["delta", "int8"]}, "'int8' after 'delta'"),
        ({"steps": ["difference", "int8", "clip"], "clip_norm": 1.0}, "out of order"),
        ({"steps": ["difference", "int8", "int8"]}, "twice"),
        ({"steps": ["difference", "int8", "int4"]}, "both 'int8' and 'int4'"),
        ({"steps": ["difference", "clip"]}, "update.clip_norm is not given"),
        ({"steps": ["difference"], "topk": 0.1}, "update.topk is given but"),
        ({"steps": ["sparse-bf16"]}, "not a whole bfloat16 model"),
        ({"steps": ["zip"]}, "update.steps.0"),
    ],
)
def test_chains_that_cannot_work_are_refused(update: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        study(update=update)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("rounds", "fault"),
    [
        ({"fold": {"name": "trimmed-mean"}}, "needs 3 updates but a round may have 2"),
        ({"fold": {"name": "krum"}}, "needs 5 updates"),
        ({"fold": {"name": "median"}, "weights": "patients"}, "gives every site one voice"),
        ({"fold": {"name": "mean", "trim": 1}}, "trim"),
        ({"keep_checkpoints": 1}, "keep_checkpoints"),
        ({"quorum": 1, "on_missing": "wait"}, "on_missing = 'wait' folds no round without all sites"),
        ({"quorum": 1, "on_missing": "stop"}, "on_missing = 'stop' folds no round without all sites"),
    ],
)
def test_rounds_that_cannot_work_are_refused(rounds: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        study(rounds=rounds)


def test_whole_chains_are_read() -> None:
    update = {"steps": ["difference", "clip", "topk", "int4"], "clip_norm": 1.0, "topk": 0.1}
    assert study(update=update).update.steps == ("difference", "clip", "topk", "int4")
    bf16 = {"base": "/m", "dtype": "bfloat16"}
    assert study(model=bf16, update={"steps": ["sparse-bf16"]}).update.steps == ("sparse-bf16",)
