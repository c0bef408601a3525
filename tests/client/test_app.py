"""The site's app under messages that it must not answer: what leaves is a number and a fixed sentence, and the audit
log has it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save_file

from client import policy
from client.app import app
from client.audit import first_broken
from client.door import Asked, Door
from client.egress import REFUSALS, answer, records
from client.outbox import Outbox
from client.policy import Policy, Refusal
from client.replies import Configured, Handed, Trained
from common.errors import UserError
from common.federation import Transfer, Update
from common.study import Study, parse_study
from common.transfer.records import PAYLOAD_MISSING, shard_in
from common.update.chain import chain
from common.update.tensors import State

TRANSFER = Transfer(shard_mb=30e-6, inline_mb=1e-3)
IN_SHARDS = TRANSFER.model_copy(update={"inline_mb": 0.0})
ASKED = Asked("0" * 64, "run", 1)
SECRET = "Mrs Example, 1931-04-02"
REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def study(**tables: Any) -> Study:
    values = {"name": "small", "sites": {"train": ["a"]}, "model": {"base": "nowhere"}}
    return parse_study(values | tables, "test")


def site_file(folder: Path, patients: int = 120, client: str = "") -> Path:
    path = folder / "a.toml"
    path.write_text(
        f'extends = "{REGISTRY}"\nsite = "a"\n[synthetic]\npatients = {patients}\nseed = 1\n{client}'
    )
    return path


def context_of(path: Path, **more: bool | str) -> Context:
    node = {"site-config": str(path), "state-dir": str(path.parent / "state"), **more}
    return Context(1, 2, node, RecordDict(), {})


def ask(kind: str, context: Context, **content: ConfigRecord | ArrayRecord) -> Message:
    message = Message(RecordDict(dict(content)), 2, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, context)


def configure(context: Context, wanted: Study, digest: str | None = None) -> Message:
    record = ConfigRecord({"json": json.dumps(wanted.canonical()), "hash": digest or wanted.hash})
    return ask("query.configure", context, study=record)


def audit_kinds(context: Context) -> list[str]:
    log = Path(str(context.node_config["state-dir"])) / "audit.jsonl"
    assert first_broken(log) is None
    return [json.loads(line)["kind"] for line in log.read_text().splitlines()]


def test_a_site_says_its_name_and_logs_it(tmp_path: Path) -> None:
    context = context_of(site_file(tmp_path))
    assert ask("query.describe", context).content.config_records["site"]["name"] == "a"
    assert audit_kinds(context) == ["Described"]


def test_a_study_that_was_not_approved_is_refused(tmp_path: Path) -> None:
    context = context_of(site_file(tmp_path))
    reply = configure(context, study())
    assert (reply.error.code, reply.error.reason) == (policy.NOT_APPROVED, REFUSALS[policy.NOT_APPROVED])
    assert audit_kinds(context) == ["Refused"]


def test_a_study_approved_by_its_hash_is_taken(tmp_path: Path) -> None:
    approved = f'[client.policy]\napproved = ["{study().hash}"]\n'
    context = context_of(site_file(tmp_path, client=approved))
    counts = configure(context, study()).content.metric_records["counts"]
    assert counts["patients"] >= policy.MINIMUM_PATIENTS and counts["questions"] > counts["patients"]


def test_an_approval_does_not_cover_a_changed_study(tmp_path: Path) -> None:
    approved = f'[client.policy]\napproved = ["{study().hash}"]\n'
    context = context_of(site_file(tmp_path, client=approved))
    other = study(seed=2)
    assert configure(context, other).error.code == policy.NOT_APPROVED
    assert configure(context, other, digest=study().hash).error.code == policy.NOT_THE_STUDY


def test_a_withdrawn_approval_stops_training(tmp_path: Path) -> None:
    context = context_of(site_file(tmp_path), **{"approve-all": True})
    assert configure(context, study()).has_content()
    later = context_of(site_file(tmp_path))
    record = ConfigRecord({"hash": study().hash, "run": "r", "round": 1, "first_step": 0, "steps": 1})
    assert ask("train", later, round=record, model=ArrayRecord({})).error.code == policy.NOT_APPROVED


OVERRIDES = {
    "a policy record": {"policy": ConfigRecord({"approve_all": True, "minimum_patients": 1})},
    "a study that brings a policy": {"study": {"client": {"policy": {"approve_all": True}}}},
    "a study that brings a minimum": {"study": {"minimum_patients": 1}},
}


@pytest.mark.parametrize("more", OVERRIDES.values(), ids=OVERRIDES)
def test_no_message_changes_the_sites_policy(tmp_path: Path, more: dict[str, Any]) -> None:
    """Nor does the run's configuration, which the coordinator chooses."""
    path = site_file(tmp_path, client="[client.policy]\nminimum_patients = 500\n")
    node = context_of(path).node_config
    context = Context(1, 2, node, RecordDict(), {"approve-all": True, "minimum_patients": 1, "site-config": "/etc"})
    values = study().canonical() | more.get("study", {})
    record = ConfigRecord({"json": json.dumps(values), "hash": study().hash})
    content = {name: part for name, part in more.items() if name != "study"}
    refused = ask("query.configure", context, study=record, **content)
    assert refused.error.code == (policy.BAD_REQUEST if "study" in more else policy.NOT_APPROVED)
    assert audit_kinds(context) == ["Refused"]


def test_an_approval_that_has_ended_stops_training(tmp_path: Path) -> None:
    digest = study().hash
    allowed = f'[client.policy]\napproved = ["{digest}"]\n[client.policy.until]\n{digest} = '
    assert configure(context_of(site_file(tmp_path, client=allowed + "2999-01-01\n")), study()).has_content()
    ended = context_of(site_file(tmp_path, client=allowed + "2024-01-01\n"))
    assert configure(ended, study()).error.code == policy.APPROVAL_ENDED


def test_too_few_patients_stay_at_home(tmp_path: Path) -> None:
    small = site_file(tmp_path, client="[client.policy]\nminimum_patients = 500\n")
    context = context_of(small, **{"approve-all": True})
    assert configure(context, study()).error.code == policy.TOO_FEW_PATIENTS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hash": 3, "run": "r", "round": 1, "first_step": 0, "steps": 1},
        {"hash": "../../etc", "run": "r", "round": 1, "first_step": 0, "steps": 1},
        {"hash": "0" * 64, "run": "r", "round": 1, "first_step": 0, "steps": 1},
    ],
)
def test_a_malformed_question_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    context = context_of(site_file(tmp_path), **{"approve-all": True})
    reply = ask("train", context, round=ConfigRecord(fields), model=ArrayRecord({}))
    assert reply.error.code in (policy.BAD_REQUEST, policy.NOT_CONFIGURED)
    assert audit_kinds(context) == ["Refused"]


@pytest.mark.parametrize("run", ["../r", "R", "", "a/b", "a" * 101])
def test_a_run_name_that_is_no_plain_name_is_refused(tmp_path: Path, run: str) -> None:
    context = context_of(site_file(tmp_path), **{"approve-all": True})
    configure(context, study())
    record = ConfigRecord({"hash": study().hash, "run": run, "round": 1, "first_step": 0, "steps": 1})
    assert ask("train", context, round=record, model=ArrayRecord({})).error.code == policy.BAD_REQUEST


def door(folder: Path) -> Door:
    return Door("a", Policy(approve_all=True), folder)


def question() -> Message:
    message = Message(RecordDict(), 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


@pytest.mark.parametrize("error", [ValueError(SECRET), UserError(SECRET, SECRET), KeyError(SECRET), OSError(SECRET)])
def test_what_an_exception_says_stays_here(tmp_path: Path, error: Exception) -> None:
    def work() -> Configured:
        raise error

    reply = answer(door(tmp_path), Asked(), question(), work)
    assert reply.error.reason in REFUSALS.values()
    assert SECRET not in repr(reply) and SECRET not in (tmp_path / "audit.jsonl").read_text()
    assert SECRET in (tmp_path / "errors.log").read_text()


def trained(folder: Path, update: State | None = None, **changes: Any) -> Trained:
    model, outbox = {"w": torch.zeros(2)}, Outbox(folder / "outbox")
    made = update or {"w": torch.zeros(2, dtype=torch.int32)}
    manifest = outbox.put(lambda part: save_file(made, part), TRANSFER.shard_bytes)
    values = {"outbox": outbox, "manifest": manifest, "model": model, "steps": chain(Update()), "transfer": TRANSFER,
              "round": 1, "patients": 20, "questions": 40, "reward": 0.5, "informative": 0.5,
              "generating_s": 1.0, "learning_s": 1.0}  # fmt: skip
    return Trained(**(values | changes))


def test_only_what_the_allow_list_names_leaves(tmp_path: Path) -> None:
    content = records(trained(tmp_path), door(tmp_path))
    assert {name: set(record) for name, record in content.items()} == {
        "shard": {"shard"},
        "manifest": {"round", "sha256", "size", "shard_sha256", "shard_size"},
        "metrics": {"patients", "questions", "reward", "informative", "generating_s", "learning_s"},
    }


def shards(outbox: Outbox, sha256: str, numbers: list[int], folder: Path) -> bytes:
    replies = [records(Handed(outbox, sha256, number), door(folder)) for number in numbers]
    return b"".join(shard_in(content) for content in replies)


def test_shards_leave_of_an_update_that_was_let_out_and_of_no_other(tmp_path: Path) -> None:
    reply = trained(tmp_path, transfer=IN_SHARDS)
    digest, count = reply.manifest.sha256, len(reply.manifest.shards)
    assert count > 1
    with pytest.raises(Refusal) as early:
        shards(reply.outbox, digest, [0], tmp_path)
    assert early.value.code == PAYLOAD_MISSING
    let_out = answer(door(tmp_path), ASKED, question(), lambda: reply)
    assert set(let_out.content) == {"manifest", "metrics"}, "nothing of the update is in the answer itself"
    whole = shards(reply.outbox, digest, list(range(count)), tmp_path)
    assert whole == reply.outbox.payload(digest).read_bytes()
    assert shards(reply.outbox, digest, [0, 0], tmp_path) == 2 * whole[:30], "each as often as it is asked for"
    for wrong, code in ((digest[:-1] + "x", policy.BAD_REQUEST), ("0" * 64, PAYLOAD_MISSING)):
        with pytest.raises(Refusal) as refused:
            shards(reply.outbox, wrong, [0], tmp_path)
        assert refused.value.code == code
    with pytest.raises(Refusal) as beyond:
        shards(reply.outbox, digest, [count], tmp_path)
    assert beyond.value.code == policy.BAD_REQUEST
    log = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["detail"]) for line in log] == [
        ("Trained", f"update {digest}, {reply.manifest.size} bytes")
    ]


def test_an_update_that_changed_on_the_disk_does_not_leave(tmp_path: Path) -> None:
    reply = trained(tmp_path, transfer=IN_SHARDS)
    answer(door(tmp_path), ASKED, question(), lambda: reply)
    payload = reply.outbox.payload(reply.manifest.sha256)
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    last = len(reply.manifest.shards) - 1
    with pytest.raises(Refusal) as refused:
        shards(reply.outbox, reply.manifest.sha256, [last], tmp_path)
    assert refused.value.code == PAYLOAD_MISSING and not payload.exists(), "the next answer computes it again"


def test_the_app_is_light_enough_to_be_started_for_a_shard() -> None:
    """torch and what is built on it take seconds to import, and every message has a process of its own."""
    code = "import client.app, sys; print(*sorted({'torch', 'transformers', 'trl', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
