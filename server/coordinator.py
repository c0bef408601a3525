"""A coordinator's folder: its certificates, the sites it knows, and the way to talk to its SuperLink.

DIR/
  certs/        ca.pem, server.pem, server.key (`wardround certs make`, or a PKI's own)
  sites/        NAME.pub, one a site (`wardround sites add`); revoked/ has the keys that were taken out of use
  nodes.json    what the SuperLink was told of them
  flower/       Flower's own folder, with the address under which the coordinator is reached from here
  state.db      SQLite: runs, nodes, messages; a restart goes on from it
  executor.secret   only the holder may take the coordinator's tasks
  bundle/       the signed bundle that runs ship, where there is one (server/review.py)
  bulk/         what the bulk channel may move, where there is one (server/bulk_spool.py)
  progress/     how far each site's local training is (server/heartbeats.py)
  under-way/    the runs that are led from here now (server/health.py)
  logs/
"""

import hashlib
import json
import os
import secrets
import ssl
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import tomli_w

from common.address import Address
from common.certificates import Validity, validity_in
from common.errors import UserError
from common.keys import read_public_key, write_private
from common.processes import flower_environment, installed_command
from server.certs import Certificates, in_folder
from server.run_folder import read_json, write_json, write_text

if TYPE_CHECKING:  # else imported where it is used: most commands need nothing of Flower
    from flwr.proto.run_pb2 import RunStatus
    from flwr.supercore.control import ControlHttpClient

CONNECTION = "wardround"
CALL_S = 15.0
"""What the SuperLink's answer to a question may take."""
NO_REASON = "no reason given"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Coordinator:
    """Where a coordinator's files lie. `folder` is absolute."""

    folder: Path

    @property
    def certificates(self) -> Certificates:
        return in_folder(self.folder / "certs")

    @property
    def sites(self) -> Path:
        return self.folder / "sites"

    @property
    def revoked(self) -> Path:
        return self.sites / "revoked"

    @property
    def flower(self) -> Path:
        return self.folder / "flower"

    @property
    def connection(self) -> Path:
        """How `flwr` commands, and we, reach the SuperLink from here."""
        return self.flower / "config.toml"

    @property
    def secret(self) -> Path:
        return self.folder / "executor.secret"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def bulk(self) -> Path:
        return self.folder / "bulk"

    @property
    def progress(self) -> Path:
        return self.folder / "progress"

    @property
    def under_way(self) -> Path:
        return self.folder / "under-way"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"


def site_keys(coordinator: Coordinator) -> dict[str, Path]:
    """The sites' public keys by site name, as they hold now."""
    return {path.stem: path for path in sorted(coordinator.sites.glob("*.pub"))}


def key_line(path: Path) -> str:
    """What makes two files the same key: its kind and value, without the comment."""
    return " ".join(path.read_text(encoding="utf-8").split()[:2])


def check_new_key(coordinator: Coordinator, public_key: Path) -> None:
    """Raises: UserError: not a P-384 public key, another site's, or one that was revoked."""
    read_public_key(public_key)
    line, own = key_line(public_key), "A site has a key of its own: `wardround-site keygen` makes one."
    for other, path in site_keys(coordinator).items():
        if key_line(path) == line:
            raise UserError(f"{public_key}: this is the key of site {other!r}.", own)
    for path in coordinator.revoked.glob("*.pub"):
        if key_line(path) == line:
            raise UserError(f"{public_key}: this key was revoked, which is for good ({path}).", own)


def add_site(coordinator: Coordinator, name: str, public_key: Path) -> Path:
    """Keep a site's public key; `wardround serve` registers it.

    Raises:
        UserError: as `check_new_key`, or the name is already known.
    """
    check_new_key(coordinator, public_key)
    place = coordinator.sites / f"{name}.pub"
    if place.exists():
        raise UserError(f"Site {name!r} has a key already.", "`wardround sites rotate` replaces it.")
    write_text(place, public_key.read_text(encoding="utf-8"))
    return place


def revoke_site(coordinator: Coordinator, name: str) -> Path:
    """Take a site's key out of use for good; `wardround serve` cuts its node off. Returns where the key is kept.

    Raises:
        UserError: the site is not known.
    """
    place = key_of(coordinator, name)
    kept = revoked_place(coordinator, name, place)
    kept.parent.mkdir(exist_ok=True)
    os.replace(place, kept)
    return kept


def rotate_site(coordinator: Coordinator, name: str, public_key: Path) -> Path:
    """Give a site another key and revoke the one that it had.

    Raises:
        UserError: as `check_new_key`, or the site is not known.
    """
    place = key_of(coordinator, name)
    check_new_key(coordinator, public_key)
    # Both are whole at any time: killed in between, the site still has its old key.
    write_text(revoked_place(coordinator, name, place), place.read_text(encoding="utf-8"))
    write_text(place, public_key.read_text(encoding="utf-8"))
    return place


def key_of(coordinator: Coordinator, name: str) -> Path:
    """Raises: UserError: the site is not known."""
    known = site_keys(coordinator)
    if name not in known:
        raise UserError(f"Site {name!r} is not known here.", f"Known are: {', '.join(known) or 'none'}.")
    return known[name]


def revoked_place(coordinator: Coordinator, name: str, key: Path) -> Path:
    digest = hashlib.sha256(key_line(key).encode()).hexdigest()
    return coordinator.revoked / f"{name}.{digest[:16]}.pub"


def revoked_sites(coordinator: Coordinator) -> frozenset[str]:
    """Sites whose key was revoked and that have no other."""
    names = {path.name.split(".")[0] for path in coordinator.revoked.glob("*.pub")}
    return frozenset(names - site_keys(coordinator).keys())


def validities(coordinator: Coordinator) -> list[Validity]:
    """Of the certificates that the sites see. Raises: UserError: a file holds none."""
    files = coordinator.certificates
    return [validity_in(f"the certificate in {path}", path) for path in (files.ca, files.server)]


def prepare(coordinator: Coordinator, address: Address) -> None:
    """Check what must be there, make what is ours to make, write down the address.

    Raises:
        UserError: a certificate is missing or has ended.
    """
    files = coordinator.certificates
    for path in (files.ca, files.server, files.server_key):
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file.",
                f"Run `wardround certs make {coordinator.folder} --host NAME`, or put your own PKI's files there.",
            )
    for validity in validities(coordinator):
        if validity.days < 0:
            raise UserError(
                f"{validity.warning}.",
                "`wardround certs renew` makes a new one of the same CA; a new CA's ca.pem goes to all sites.",
            )
    if not coordinator.secret.exists():
        write_private(coordinator.secret, secrets.token_bytes(32))
    coordinator.flower.mkdir(exist_ok=True)
    connection = {"address": str(address.from_here), "root-certificates": str(files.ca)}
    settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    write_text(coordinator.connection, tomli_w.dumps(settings))


def control(coordinator: Coordinator) -> "ControlHttpClient":
    """The SuperLink's control interface; to be closed. Raises: UserError: nothing was ever served here."""
    from flwr.supercore.control import ControlHttpClient

    if not coordinator.connection.exists():
        raise UserError(
            f"{coordinator.folder}: no coordinator has run here.", f"Run `wardround serve {coordinator.folder}`."
        )
    found = tomllib.loads(coordinator.connection.read_text(encoding="utf-8"))["superlink"][CONNECTION]
    trust = ssl.create_default_context(cafile=found["root-certificates"])
    return ControlHttpClient(f"https://{found['address']}", verify=trust, timeout=CALL_S)


def ask(coordinator: Coordinator, question: "Callable[[ControlHttpClient], Answer]") -> Answer:
    """Ask the running SuperLink something that `flwr` also tells: that command imports for more than a second.

    Raises:
        UserError: no coordinator is running, or it cannot answer.
    """
    client = control(coordinator)
    try:
        return question(client)
    except httpx.HTTPError as error:
        # What a status is told with has a second line, which says where to read about HTTP.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"The SuperLink does not answer: {reason}.", is_it_running(coordinator)) from None
    finally:
        client.close()


def is_it_running(coordinator: Coordinator) -> str:
    return f"Is `wardround serve {coordinator.folder}` running? Its logs are in {coordinator.logs}."


def flower(coordinator: Coordinator, *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command against the coordinator and read its JSON.

    Raises:
        UserError: no coordinator is running, or Flower refused; with Flower's own sentence.
    """
    environment = flower_environment(coordinator.flower)
    line = [installed_command("flwr", environment), *arguments, "--format", "json"]
    done = subprocess.run(line, env=environment, cwd=coordinator.folder, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {"error-message": done.stderr or done.stdout}
    if done.returncode or not answer.get("success"):
        lines = str(answer.get("error-message", "")).strip().splitlines()
        message = lines[-1].strip().rstrip(".") if lines else NO_REASON
        raise UserError(f"`flwr {' '.join(arguments[:2])}` was refused: {message}.", is_it_running(coordinator))
    return answer


def registered(coordinator: Coordinator) -> dict[str, dict[str, str]]:
    """Site -> `node` (Flower's id) and `key` (its line), as the SuperLink was last told. Flower itself lists nodes
    without names."""
    place = coordinator.folder / "nodes.json"
    return read_json(place) if place.exists() else {}


def keys_changed(coordinator: Coordinator) -> bool:
    """Whether the SuperLink is still to be told of a key that was added, revoked or rotated."""
    told = {site: node["key"] for site, node in registered(coordinator).items()}
    return told != {site: key_line(path) for site, path in site_keys(coordinator).items()}


def register_sites(coordinator: Coordinator) -> list[str]:
    """Let the running SuperLink know the sites of `sites/` by their present keys, and no others; returns what changed,
    a sentence each.

    Raises:
        UserError: it is not running, or refuses.
    """
    nodes, keys, changes = registered(coordinator), site_keys(coordinator), []
    living = {node for node, status in node_states(coordinator).items() if status != "unregistered"}
    for site, node in list(nodes.items()):
        if node["node"] in living and site in keys and key_line(keys[site]) == node["key"]:
            continue
        if node["node"] in living:
            flower(coordinator, "supernode", "unregister", node["node"], CONNECTION)
            changes.append(f"{site}: its key was revoked, its node is cut off")
        del nodes[site]
        write_json(coordinator.folder / "nodes.json", nodes)
    for site, key in keys.items():
        if site not in nodes:
            answer = flower(coordinator, "supernode", "register", str(key), CONNECTION, "--name", site)
            nodes[site] = {"node": str(answer["node-id"]), "key": key_line(key)}
            changes.append(f"{site}: registered")
            write_json(coordinator.folder / "nodes.json", nodes)
    return changes


def node_states(coordinator: Coordinator) -> dict[str, str]:
    """Flower's id of each node -> its word for it. Raises: UserError: as `ask`."""
    from flwr.proto.control_pb2 import ListNodesRequest

    answer = ask(coordinator, lambda client: client.ListNodes(ListNodesRequest()))
    return {str(node.node_id): node.status for node in answer.nodes_info}


def run_states(coordinator: Coordinator, flower_run: str | None = None) -> dict[str, tuple[str, str]]:
    """Flower's id of each run, or of this one -> its word for where it is, and details (the ServerApp's exception, when
    it failed). Raises: UserError: as `ask`, or there is no such run."""
    from flwr.proto.control_pb2 import ListRunsRequest

    request = ListRunsRequest() if flower_run is None else ListRunsRequest(run_id=int(flower_run))
    runs = ask(coordinator, lambda client: client.ListRuns(request)).run_dict
    return {str(number): (word(run.status), run.status.details or NO_REASON) for number, run in runs.items()}


def word(status: "RunStatus") -> str:
    return f"{status.status}:{status.sub_status}" if status.sub_status else status.status


def site_states(coordinator: Coordinator) -> dict[str, str]:
    """Site -> `revoked`, or Flower's word for its node: registered, online, offline."""
    by_node, nodes = node_states(coordinator), registered(coordinator)
    states = {site: by_node.get(node["node"], "unknown") for site, node in nodes.items()}
    states |= dict.fromkeys(revoked_sites(coordinator), "revoked")
    return dict(sorted(states.items()))
