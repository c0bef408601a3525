"""Many sites on this machine: a Grid that hands each message straight to the site's own app.

Nothing is imported from the client: the app is loaded by the reference under which Flower loads it. A
message is answered when its reply is asked for, one after the other in the order of sending, so that a run
is deterministic and holds one site's work at a time.
"""

import importlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.grpo.noise import derived_key, write_secret
from common.keys import PRIVATE_NAME, make_site_key
from common.questions.codebook import Codebook
from common.study import Study
from server.app import app as server_app
from server.codebooks import common_codebook
from server.mailbox import Mailbox
from server.run_folder import EventLog
from server.sites import name_sites

CLIENT_APP = "client.app:app"
RUN_ID = 1
COORDINATOR = 1
"""Node id of the coordinator; sites count on from there."""


def load_client_app(reference: str = CLIENT_APP) -> ClientApp:
    module, attribute = reference.split(":")
    found = vars(importlib.import_module(module))[attribute]
    assert isinstance(found, ClientApp)
    return found


def set_identity(node: int) -> None:
    """Flower reads from here who it is that makes a message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, node, 1


class InProcessGrid(Grid):
    """Flower's Grid over apps in this process.

    Args:
        app: the site's app.
        contexts: node id -> the context that this site's app is called with.
    """

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        self.app = app
        self.contexts = contexts
        self.waiting: dict[str, Message] = {}
        set_identity(COORDINATOR)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("the in-process grid has one run")

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self.waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the first of these messages that has none yet."""
        wanted = set(message_ids)
        for message_id in self.waiting:
            if message_id in wanted:
                return [self.deliver(self.waiting.pop(message_id))]
        return []

    def deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        set_identity(node)
        try:
            return self.app(message, self.contexts[node])
        finally:
            set_identity(COORDINATOR)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def site_contexts(study: Study, states: Path) -> dict[int, Context]:
    """A node for every training site, configured as a hospital would configure its own.

    Args:
        states: a folder a site below this one.
    """
    configs = Path(study.simulation.site_configs)
    contexts = {}
    for node, site in enumerate(sorted(study.sites.train), start=COORDINATOR + 1):
        if study.privacy is not None:
            # A hospital's is random. Here the same study must give the same numbers, and there is nobody to hide from.
            write_secret(states / site, derived_key(bytes(32), study.seed, site))
        node_config: dict[str, bool | float | int | str] = {
            "site-config": str(configs / f"{site}.toml"),
            "state-dir": str(states / site),
            "approve-all": True,
        }
        if study.secure_sum is not None:
            node_config |= {"key": str(states / site / PRIVATE_NAME), "played-keys": played_keys(study, states)}
        contexts[node] = Context(RUN_ID, node, node_config, RecordDict(), {})
    return contexts


def played_keys(study: Study, states: Path) -> str:
    """Folder of the public keys of the sites that are played, which are made here: a simulation has not the hospitals'.
    Empty where the study needs none.

    Args:
        states: see `site_contexts`.
    """
    if study.secure_sum is None:
        return ""
    folder = states.with_name("keys")
    folder.mkdir(parents=True, exist_ok=True)
    for site in study.sites.train:
        if not (folder / f"{site}.pub").exists():
            (states / site / PRIVATE_NAME).unlink(missing_ok=True)
            _, public = make_site_key(states / site)
            os.replace(public, folder / f"{site}.pub")
    return str(folder)


def simulated_codebook(study: Study, arm: Path, log: EventLog) -> Codebook | None:
    """The codebook that the sites share, agreed as in a federated run and kept for it; None where each has its own.

    Args:
        arm: folder of the federated arm, as `simulate_federated` gets it.
    """
    if study.questions.codebook == "site":
        return None
    grid = InProcessGrid(load_client_app(), site_contexts(study, arm / "sites"))
    return common_codebook(Mailbox(grid, name_sites(grid, study, log), log), study, arm)


def simulate_federated(study_file: Path, study: Study, run: str, model: Path, arm: Path, events: Path) -> None:
    """Run the coordinator's app against the sites' app in this process, from the last finished round on.

    Args:
        study_file: the resolved study with this run's seed.
        arm: folder of the checkpoints; the sites' folders are `arm/sites/NAME`.
    """
    grid = InProcessGrid(load_client_app(), site_contexts(study, arm / "sites"))
    run_config: dict[str, bool | float | int | str] = {
        "study": str(study_file),
        "run": run,
        "model": str(model),
        "arm-dir": str(arm),
        "events": str(events),
        "coordinator": "",
        "played-keys": played_keys(study, arm / "sites"),
    }
    server_app(grid, Context(RUN_ID, COORDINATOR, {}, RecordDict(), run_config))
