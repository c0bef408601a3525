"""A coordinator's folder: its certificates, the sites it knows, and the way to talk to its SuperLink.

DIR/
  certs/        ca.pem, server.pem, server.key (`wardround certs make`, or a PKI's own)
  sites/        NAME.pub, one a site (`wardround sites add`)
  flower/       Flower's own folder, with the address under which the coordinator is reached from here
  state.db      SQLite: runs, nodes, messages; a restart goes on from it
  executor.secret   only the holder may take the coordinator's tasks
  bundle/       the signed bundle that runs ship, where there is one (server/review.py)
  bulk/         what the bulk channel may move, where there is one (server/bulk_spool.py)
  progress/     how far each site's local training is (server/heartbeats.py)
  logs/
"""

import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from common.address import Address
from common.certificates import Validity, validity_in
from common.errors import UserError
from common.keys import read_public_key, write_private
from common.processes import flower_environment, installed_command
from server.certs import Certificates, in_folder

CONNECTION = "wardround"


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
    def flower(self) -> Path:
        return self.folder / "flower"

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
    def logs(self) -> Path:
        return self.folder / "logs"


def site_keys(coordinator: Coordinator) -> dict[str, Path]:
    """The registered sites' public keys by site name."""
    return {path.stem: path for path in sorted(coordinator.sites.glob("*.pub"))}


def add_site(coordinator: Coordinator, name: str, public_key: Path) -> Path:
    """Keep a site's public key; `wardround serve` registers it.

    Raises:
        UserError: not a P-384 public key, or the name or the key is already known.
    """
    read_public_key(public_key)
    content = public_key.read_bytes()
    for other, path in site_keys(coordinator).items():
        if path.read_bytes().split()[:2] == content.split()[:2]:
            raise UserError(f"{public_key}: this is the key of site {other!r}.", "A site has a key of its own.")
    place = coordinator.sites / f"{name}.pub"
    if place.exists():
        raise UserError(f"Site {name!r} has a key already.", f"Remove {place} to replace it.")
    coordinator.sites.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


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
                "Put new ca.pem, server.pem and server.key there (docs/coordinator.md); the sites need the new ca.pem.",
            )
    if not coordinator.secret.exists():
        write_private(coordinator.secret, secrets.token_bytes(32))
    coordinator.flower.mkdir(exist_ok=True)
    connection = {"address": str(address.from_here), "root-certificates": str(files.ca)}
    settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (coordinator.flower / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


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
        message = lines[-1].strip().rstrip(".") if lines else "no reason given"
        raise UserError(
            f"`flwr {' '.join(arguments[:2])}` was refused: {message}.",
            f"Is `wardround serve {coordinator.folder}` running? Its logs are in {coordinator.logs}.",
        )
    return answer


def register_sites(coordinator: Coordinator) -> dict[str, str]:
    """Make every site of `sites/` known to the running SuperLink; returns site -> node id.

    What is registered is kept beside the database, since Flower lists nodes without their names.
    """
    place = coordinator.folder / "nodes.json"
    nodes: dict[str, str] = json.loads(place.read_text()) if place.exists() else {}
    present = {row["node-id"] for row in flower(coordinator, "supernode", "list", CONNECTION)["nodes"]}
    nodes = {site: node for site, node in nodes.items() if node in present}
    for site, key in site_keys(coordinator).items():
        if site not in nodes:
            answer = flower(coordinator, "supernode", "register", str(key), CONNECTION, "--name", site)
            nodes[site] = str(answer["node-id"])
            place.write_text(json.dumps(nodes, indent=1), encoding="utf-8")
    return nodes


def site_states(coordinator: Coordinator) -> dict[str, str]:
    """Site -> Flower's word for its node: registered, online, offline."""
    place = coordinator.folder / "nodes.json"
    nodes: dict[str, str] = json.loads(place.read_text()) if place.exists() else {}
    rows = flower(coordinator, "supernode", "list", CONNECTION)["nodes"]
    by_node = {row["node-id"]: row["status"] for row in rows}
    return {site: by_node.get(node, "unknown") for site, node in sorted(nodes.items())}
