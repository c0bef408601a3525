"""Sites that train by adding a number to every weight and send it in a secure sum: all but the training is the real
app's, through the real door, with the sites' real files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from safetensors.torch import save_file

from client.disk import write
from client.egress import answer
from client.messages import asked_in, run_folder
from client.outbox import Outbox
from client.replies import Learned
from client.round_model import round_model
from client.secure_sum import WITHHELD, forget
from client.site import Site, site_of
from common.keys import read_public_key
from common.study import Study
from common.update.chain import chain, encode
from common.update.tensors import State
from server.round_store import Checkpoint, RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog, read_events
from server.secure_sum import Identities
from server.simulation import InProcessGrid, load_client_app, played_keys, site_contexts
from tests.server.adding import FIGURES, answered

SITES = ("a", "b", "c", "d")
MODEL: State = {"w": torch.linspace(-1, 1, 1500), "v": torch.tensor([[2.0]])}
Hook = Callable[[str, Message], Message]
"""Site and a message to it, or a reply of it -> what arrives instead."""


def added(site: str, number: int) -> float:
    """What a site adds in a round; of no simple binary form."""
    return (SITES.index(site) + 1) * number / 10000


def patients(site: str) -> int:
    return 20 * (SITES.index(site) + 1)


def fails(reply: Message, code: int = 1008) -> Message:
    return Message(Error(code, "the work failed at this site"), reply_to=answered(reply))


def dropping(sites: set[str], kind: str) -> Hook:
    """These sites' replies of one kind fail."""
    return lambda site, reply: fails(reply) if site in sites and reply.metadata.message_type == kind else reply


class Summing(InProcessGrid):
    """Attributes:
    to, back: what happens to messages and replies on their way.
    asked: kind and site of every message that was delivered.
    """

    def __init__(self, study: Study, arm: Path) -> None:
        super().__init__(load_client_app(), site_contexts(study, arm / "sites"))
        self.study = study
        self.to: Hook = lambda site, message: message
        self.back: Hook = lambda site, reply: reply
        self.asked: list[tuple[str, str]] = []

    def name(self, node: int) -> str:
        return SITES[node - 2]

    def context(self, site: str) -> Context:
        return self.contexts[SITES.index(site) + 2]

    def deliver(self, message: Message) -> Message:
        site, kind = self.name(message.metadata.dst_node_id), message.metadata.message_type
        message = self.to(site, message)
        self.asked.append((kind, site))
        if kind == "query.configure":
            return self.configured(site, message)
        if kind == "train":
            here = site_of(self.context(site))
            return answer(here.door, asked_in(message, "round"), message, lambda: self.trained(here, message))
        return super().deliver(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.back(self.name(reply.metadata.src_node_id), reply) for reply in super().pull_messages(message_ids)]

    def configured(self, site: str, message: Message) -> Message:
        about = site_of(self.context(site)).state / "studies" / self.study.hash / "study.json"
        text = json.dumps({"study": self.study.canonical()})
        write(about, lambda part: part.write_text(text))
        return Message(RecordDict({"counts": MetricRecord({"patients": patients(site)})}), reply_to=message)

    def trained(self, site: Site, message: Message) -> Learned:
        """As `SiteStudy.train`, without the local steps."""
        run, number = run_folder(site, message), int(message.content.config_records["round"]["round"])
        before = round_model(run, message)
        forget(run.parents[1], run.name, number - 1)
        after = {name: tensor + added(site.name, number) for name, tensor in before.items()}
        steps, outbox = chain(self.study.update), Outbox(run / WITHHELD)
        update = encode(steps, before, after, {})[0]
        manifest = outbox.put(lambda part: save_file(update, part), self.study.transfer.shard_bytes)
        figures = {**FIGURES, "patients": patients(site.name), "questions": 400}
        last = json.dumps({"asked": {"round": number}, "manifest": manifest.to_dict(), "figures": figures})
        write(run / "last.json", lambda part: part.write_text(last))
        return Learned(outbox, manifest, before, steps, self.study.transfer, number, **figures)


class Run:
    """A run of such a study. Its arm, its sites' folders and its Grid."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.arm = study, folder
        self.store = RoundStore(folder)
        if self.store.latest() is None:
            self.store.save(Checkpoint(0, 0, MODEL, {}, {"baseline": {}}))
        self.grid = Summing(study, folder)

    @property
    def played(self) -> Identities:
        keys = Path(played_keys(self.study, self.arm / "sites"))
        return {site: read_public_key(keys / f"{site}.pub") for site in SITES}

    def go(self) -> State:
        log = EventLog(self.arm / "events.jsonl", arm="federated", seed=1)
        return run_rounds(self.grid, self.study, "run", Path(), self.store, log, None, self.played).model

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.arm / "events.jsonl") if event["event"] in names]

    def audited(self, site: str, kind: str) -> list[dict[str, Any]]:
        lines = (self.arm / "sites" / site / "audit.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]

    def ask(self, site: str, kind: str, **records: ConfigRecord) -> Message:
        """A message of the coordinator's, beside the run."""
        message = Message(RecordDict(dict(records)), SITES.index(site) + 2, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return self.grid.app(message, self.grid.context(site))


def round_record(run: Run, number: int = 1) -> ConfigRecord:
    return ConfigRecord({"hash": run.study.hash, "run": "run", "round": number, "first_step": number - 1, "steps": 1})
