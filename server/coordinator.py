"""A coordinator's folder: its certificates, the sites it knows, and the way to talk to its SuperLink.

    DIR/
      certs/        ca.pem, server.pem, server.key (`wardround certs make`, or a PKI's own)
      sites/        NAME.pub, one a site (`wardround sites add`)
      flower/       Flower's own folder, with the address under which the coordinator is reached from here
      state.db      SQLite: runs, nodes, messages; a restart goes on from it
      executor.secret   only the holder may take the coordinator's tasks
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
from common.errors import UserError
from common.keys import check_public_key, write_private
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
        answer = {"error-message": (done.stderr or done.stdout).strip()[-500:]}
    if done.returncode or not answer.get("success"):
        message = str(answer.get("error-message", "no reason given")).strip().rstrip(".")
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
