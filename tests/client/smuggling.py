"""What the tests of the door share: an honest reply of each kind, and what it means that a dishonest one is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save_file

from client.audit import first_broken
from client.door import Asked, Door
from client.egress import REFUSALS, answer
from client.outbox import Outbox
from client.policy import Policy
from client.replies import Reply, Trained
from common.federation import Transfer, Update
from common.update.chain import chain, encode
from common.update.tensors import State

NAME, BORN, DAY = "Mrs Example", 19310402, "1931-04-02"
SECRETS = (NAME, "Example", "mrs-example", str(BORN), DAY)
ASKED = Asked("5" * 64, "a-run", 3)


def question() -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict(), 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def door(folder: Path, **permitted: Any) -> Door:
    return Door("north", Policy(approved=(ASKED.study,), **permitted), folder / "state")


@dataclass(frozen=True)
class Attempt:
    """One way to carry a patient's data past the door.

    Attributes:
        honest: the same reply without them, which passes.
        smuggled: the reply with them.
        code, rule: what the refusal says, to the coordinator and to the site's own log.
    """

    honest: Callable[[Path], Reply]
    smuggled: Callable[[Path], Reply]
    code: int
    rule: str = ""

    def check(self, folder: Path) -> None:
        assert answer(door(folder / "honest"), ASKED, question(), lambda: self.honest(folder / "honest")).has_content()
        told = answer(door(folder), ASKED, question(), lambda: self.smuggled(folder))
        check_refused(folder, told, self.code, self.rule)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "state" / "audit.jsonl").read_text().splitlines()]


def check_refused(folder: Path, told: Message, code: int, rule: str = "") -> None:
    """Refused with a fixed sentence, noted in a whole chain, and nothing of the payload in either."""
    assert told.has_error() and (told.error.code, told.error.reason) == (code, REFUSALS[code])
    log = folder / "state" / "audit.jsonl"
    assert first_broken(log) is None
    last = entries(folder)[-1]
    assert last["kind"] == "Refused" and last["detail"].startswith(str(code)) and rule in last["detail"]
    seen = repr(told) + log.read_text()
    assert not [secret for secret in SECRETS if secret in seen]
    assert not list(folder.glob("outbox/*.json")), "nothing is approved to leave later"


def model() -> State:
    torch.manual_seed(1)
    return {"v": torch.randn(3), "w": torch.randn(20, 30)}


def update_of(steps: Update) -> State:
    """An honest change of `model`, as these steps send it."""
    before = model()
    after = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in before.items()}
    return encode(chain(steps), before, after, {})[0]


def trained(
    folder: Path,
    update: State | None = None,
    steps: Update | None = None,
    fill: Callable[[Path], object] | None = None,
    **changes: Any,
) -> Trained:
    """An answer to `train`; `changes` are of its fields.

    Args:
        update: what the file holds, `update_of` unless given.
        fill: writes the file, as safetensors does unless given.
    """
    steps, spec = steps or Update(), Transfer(shard_mb=0.001)
    outbox, sent = Outbox(folder / "outbox"), update or update_of(steps)
    manifest = outbox.put(fill or (lambda part: save_file(sent, part)), spec.shard_bytes)
    values = {
        "outbox": outbox, "manifest": manifest, "model": model(), "steps": chain(steps), "transfer": spec,
        "round": ASKED.round, "patients": 20, "questions": 40, "reward": 0.5, "informative": 0.25,
        "generating_s": 1.5, "learning_s": 2.25,
    }  # fmt: skip
    return Trained(**(values | changes))
