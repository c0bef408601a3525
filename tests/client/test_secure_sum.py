"""What a site demands of a study before it takes part in a secure sum, and what the door lets out of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save_file

from client.egress import answer
from client.outbox import Outbox
from client.policy import NOT_ALLOWED, SITE_CONFIGURATION, SUM_IDENTITY, SUM_REQUIRED
from client.replies import Agreed, Dealt, Keyed, Masked, Opened, Reply
from common.federation import Transfer
from common.keys import PRIVATE_NAME, make_site_key
from common.study import Study
from common.update.tensors import State
from tests.client.smuggling import ASKED, NAME, check_refused, door, question
from tests.client.test_app import audit_kinds, configure, context_of, site_file
from tests.client.test_app import study as small

SITES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    return {site: make_site_key(tmp_path / "keys" / site)[1].read_text().strip() for site in SITES}


def summed(keys: dict[str, str], **tables: Any) -> Study:
    clip = {"steps": ["difference", "clip"], "clip_norm": 1.0}
    values = {"sites": {"train": SITES}, "update": clip, "secure_sum": {"threshold": 2, "keys": keys}}
    return small(**{**values, **tables})


def test_a_site_takes_part_under_its_own_key_alone(tmp_path: Path, keys: dict[str, str]) -> None:
    path = site_file(tmp_path)
    own = str(tmp_path / "keys" / "a" / PRIVATE_NAME)
    context = context_of(path, **{"approve-all": True, "key": own})
    swapped = {**keys, "a": keys["b"], "b": keys["a"]}
    for wrong in (swapped, {}):
        assert configure(context, summed(wrong)).error.code == SUM_IDENTITY
    keyless = context_of(path, **{"approve-all": True})
    assert configure(keyless, summed(keys)).error.code == SUM_IDENTITY
    assert configure(context, summed(keys)).has_content()
    assert audit_kinds(context) == ["Refused", "Refused", "Refused", "Configured"]


def test_a_site_may_demand_a_secure_sum(tmp_path: Path, keys: dict[str, str]) -> None:
    path = site_file(tmp_path, client="[client.policy]\nrequire_secure_sum = true\n")
    context = context_of(path, **{"approve-all": True, "key": str(tmp_path / "keys" / "a" / PRIVATE_NAME)})
    assert configure(context, small()).error.code == SUM_REQUIRED
    assert configure(context, summed(keys)).has_content()


def test_a_site_that_weighs_more_than_the_study_has_room_for_is_refused(tmp_path: Path, keys: dict[str, str]) -> None:
    context = context_of(site_file(tmp_path), **{"approve-all": True, "key": str(tmp_path / "keys/a" / PRIVATE_NAME)})
    spec = {"threshold": 2, "keys": keys, "largest_weight": 20}
    asked = summed(keys, rounds={"weights": "patients"}, secure_sum=spec)
    assert configure(context, asked).error.code == SITE_CONFIGURATION
    wide = summed(keys, rounds={"weights": "patients"}, secure_sum={**spec, "largest_weight": 200})
    assert configure(context, wide).has_content()


def masked(folder: Path, sent: State) -> Masked:
    outbox, withheld = Outbox(folder / "outbox"), folder / "withheld"
    save_file({"w": torch.zeros(3)}, withheld)
    transfer = Transfer()
    manifest = outbox.put(lambda part: save_file(sent, part), transfer.shard_bytes)
    return Masked(outbox, manifest, withheld, transfer, ASKED.round, patients=20)


SHARE, SEALED = bytes(32), bytes(92)
NUMBERS = {"w": torch.arange(3, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("honest", "smuggled", "rule"),
    [
        (Keyed(3, bytes(196)), Keyed(3, bytes(196) + NAME.encode()), "Keyed.sum.advertised is not"),
        (Keyed(3, bytes(196)), Keyed(4, bytes(196)), "does not answer"),
        (Dealt(3, {"b": SEALED}), Dealt(3, {"mrs-example": SEALED}), "does not answer"),
        (Dealt(3, {"b": SEALED}), Dealt(3, {"b": SEALED + NAME.encode()}), "Dealt.sealed.values is not"),
        (Agreed(3, bytes(104)), Agreed(3, NAME.encode() * 20), "Agreed.sum.signature is not"),
        (Opened(3, {"a": SHARE}, {"b": SHARE}), Opened(3, {"a": SHARE}, {"a": SHARE}), "does not answer"),
        (Opened(3, {"a": SHARE}, {}), Opened(3, {"a": SHARE}, {"b": NAME.encode()}), "Opened.mask_keys.values is not"),
    ],
)
def test_the_door_lets_out_what_a_sum_needs_and_nothing_else(
    tmp_path: Path, honest: Reply, smuggled: Reply, rule: str
) -> None:
    for folder in (tmp_path, tmp_path / "honest"):
        about = folder / "state" / "studies" / ASKED.study / "study.json"
        about.parent.mkdir(parents=True)
        about.write_text(json.dumps({"study": {"sites": {"train": SITES}}}))
    assert answer(door(tmp_path / "honest"), ASKED, question(), lambda: honest).has_content()
    check_refused(tmp_path, answer(door(tmp_path), ASKED, question(), lambda: smuggled), NOT_ALLOWED, rule)


@pytest.mark.parametrize(
    "sent", [{"w": torch.zeros(3)}, {"w": torch.arange(4, dtype=torch.int32)}, {**NUMBERS, "v": NUMBERS["w"].clone()}]
)
def test_the_door_lets_out_no_update_in_clear_and_no_more_numbers_than_it_has(tmp_path: Path, sent: State) -> None:
    (tmp_path / "honest").mkdir()
    whole = masked(tmp_path / "honest", NUMBERS)
    assert answer(door(tmp_path / "honest"), ASKED, question(), lambda: whole).has_content()
    wrong = answer(door(tmp_path), ASKED, question(), lambda: masked(tmp_path, sent))
    check_refused(tmp_path, wrong, NOT_ALLOWED, "has not the form")
