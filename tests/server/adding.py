"""Sites that speak the real messages, through the real door, but learn by adding a number, so that every model is known
beforehand; and a Grid with a fault in what they say."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save, save_file

from client.door import Door
from client.egress import answer
from client.inbox import take_shard
from client.messages import asked_in, shard_in_demand
from client.outbox import Outbox
from client.policy import Policy
from client.replies import Evaluated, Handed, Trained
from client.round_model import round_model
from common.study import Study
from common.transfer.manifest import Manifest, Shard
from common.transfer.records import shard_in, shard_record
from common.update.chain import chain, encode
from common.update.payload import parse_payload
from common.update.tensors import State
from server.mailbox import Names, nobody
from server.round_store import Checkpoint, RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog, read_events
from server.simulation import InProcessGrid

SITES = ("a", "b", "c")
MODEL = {"w": torch.tensor([0.5, -1.0]), "v": torch.tensor([[2.0]])}
FIGURES = {"patients": 20, "questions": 40, "reward": 0.5, "informative": 0.5, "generating_s": 0.0, "learning_s": 0.0}


@dataclass
class Adding:
    """Sites that train by adding 1, 2 and 3 (in the order of their names) to every weight."""

    study: Study
    folder: Path
    """A folder a site below this one, as a run's folder at the site."""
    trained: list[tuple[str, int]]

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            return Message(RecordDict({"site": ConfigRecord({"name": self.site(context)})}), reply_to=message)

        @app.query("configure")
        def configure(message: Message, context: Context) -> Message:
            return Message(RecordDict({"counts": MetricRecord({"patients": 20, "questions": 40})}), reply_to=message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            site = self.site(context)
            return answer(self.door(site), asked_in(message, "round"), message, lambda: self.train(message, site))

        @app.query("model")
        def model(message: Message, context: Context) -> Message:
            site = self.site(context)
            asked = asked_in(message, "round")
            return answer(self.door(site), asked, message, lambda: take_shard(self.folder / site, message))

        @app.query("shard")
        def shard(message: Message, context: Context) -> Message:
            site = self.site(context)
            work = partial(Handed, self.outbox(site), *shard_in_demand(message))
            return answer(self.door(site), asked_in(message, "round"), message, work)

        @app.query("acknowledge")
        def acknowledge(message: Message, context: Context) -> Message:
            self.outbox(self.site(context)).acknowledged(int(message.content.config_records["round"]["round"]))
            return Message(RecordDict(), reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            site = self.site(context)
            return answer(self.door(site), asked_in(message, "round"), message, lambda: self.evaluate(message, site))

        return app

    def site(self, context: Context) -> str:
        return str(context.node_config["name"])

    def door(self, site: str) -> Door:
        return Door(site, Policy(approve_all=True), self.folder / site)

    def outbox(self, site: str) -> Outbox:
        return Outbox(self.folder / site / "outbox")

    def evaluate(self, message: Message, site: str) -> Evaluated:
        round_model(self.folder / site, message)
        number = int(message.content.config_records["round"]["round"])
        return Evaluated(number, patients=20, questions=40, right=10, boxed=40, seconds=0.0)

    def train(self, message: Message, site: str) -> Trained:
        number = int(message.content.config_records["round"]["round"])
        before = round_model(self.folder / site, message)
        self.trained.append((site, number))
        after = {name: tensor + (SITES.index(site) + 1) for name, tensor in before.items()}
        steps, spec = chain(self.study.update), self.study.transfer
        update = encode(steps, before, after, {})[0]
        manifest = self.outbox(site).put(lambda part: save_file(update, part), spec.shard_bytes)
        return Trained(self.outbox(site), manifest, before, steps, spec, number, **FIGURES)


def payload(data: bytes, number: int, **figures: float) -> RecordDict:
    """A train reply with these bytes as its update."""
    digest = hashlib.sha256(data).hexdigest()
    manifest = Manifest(digest, len(data), (Shard(digest, len(data)),))
    return RecordDict(
        {
            "manifest": ConfigRecord({"round": number, **manifest.to_dict()}),
            "metrics": MetricRecord({**FIGURES, **figures}),
            "shard": shard_record(data),
        }
    )


def reply(update: State, number: int, **figures: float) -> RecordDict:
    return payload(save(update), number, **figures)


def update_in(message: Message) -> State:
    return parse_payload(shard_in(message.content), "test")


Fault = Callable[[Message], list[Message]]
"""Train reply of the faulty site -> what the Grid hands over instead."""


class FaultyGrid(InProcessGrid):
    """The in-process Grid, with a fault in one site's train replies of one round."""

    def __init__(self, app: ClientApp, fault: Fault | None = None, site: int = 3, number: int = 1) -> None:
        contexts = {n + 2: Context(1, n + 2, {"name": name}, RecordDict(), {}) for n, name in enumerate(SITES)}
        super().__init__(app, contexts)
        self.fault, self.site, self.number = fault, site, number
        self.held: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        out = []
        for message in super().pull_messages(message_ids):
            hit = message.metadata.message_type == "train" and message.metadata.src_node_id == self.site
            if hit and self.fault and message.metadata.group_id == str(self.number):
                out += self.fault(message)
            else:
                out.append(message)
        if self.held and any(m.metadata.message_type == "evaluate" for m in out):
            out.append(self.held.pop())
        return out


def answered(message: Message) -> Message:
    """The question that a reply answers, as far as a second reply needs it."""
    question = Message(RecordDict(), message.metadata.src_node_id, "train", group_id=message.metadata.group_id)
    question.metadata.__dict__["_message_id"] = message.metadata.reply_to_message_id
    return question


@dataclass
class Run:
    study: Study
    folder: Path
    sites: Adding
    revoked: Names = nobody

    def __post_init__(self) -> None:
        self.store = RoundStore(self.folder / "federated")
        if self.store.latest() is None:
            baseline: dict[str, Any] = {"baseline": {}}
            self.store.save(Checkpoint(0, 0, MODEL, {}, baseline))

    def go(self, grid: InProcessGrid) -> State:
        log = EventLog(self.folder / "events.jsonl", arm="federated", seed=1)
        return run_rounds(grid, self.study, "test", Path(), self.store, log, revoked=self.revoked).model

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in read_events(self.folder / "events.jsonl") if e["event"] in names]


def plus(amount: float) -> State:
    return {name: tensor + amount for name, tensor in MODEL.items()}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
