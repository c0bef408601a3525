"""One hospital as the apps see it: its registry's declaration, its own settings and its folder.

The site's TOML file is the registry declaration that `common` reads, plus one table `[client]` with what
only the hospital's side needs. Where the file and the folder are comes from the node's own configuration
(`--node-config` of the SuperNode, set by the hospital), never from a message.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context
from pydantic import Field

from client.bulk import Channel
from client.door import Door
from client.policy import Policy, Refusal
from common.address import Address, parse_address
from common.bulk.pace import Pace
from common.errors import UserError
from common.keys import read_private_key
from common.launcher import TrainingJobs
from common.registry.config import RegistryConfig, read_registry_config, read_values
from common.strict import Positive, checked
from common.transfer.records import NO_CHANNEL


class Settings(TrainingJobs):
    """The `[client]` table."""

    models: dict[str, str] = {}
    """`model.base` of a study -> folder on this machine; the name itself is used where none is given."""
    policy: Policy = Policy()
    keep_runs: Positive | None = None
    """Runs whose optimiser states and updates stay here, the last ones; all unless given."""
    keep_days: Positive = 30
    """How long an update stays here that the coordinator never says is folded."""
    bulk_mb_per_s: float | None = Field(default=None, gt=0)
    """Most that the bulk channel moves, in million bytes a second; no limit unless given."""


@dataclass(frozen=True)
class BulkEnd:
    """How this site reaches the coordinator's bulk channel (`wardround-site join --bulk`)."""

    coordinator: Address
    ca: Path
    key: Path


@dataclass(frozen=True)
class Site:
    registry: RegistryConfig
    settings: Settings
    state: Path
    """The site's own folder: model cache, questions, optimiser states, updates, logs."""
    bulk: BulkEnd | None = None
    key: Path | None = None
    """The private half of this site's identity."""
    played_keys: Path | None = None
    """Only where a simulation plays the hospitals: folder of the NAME.pub of all of them, which it has made itself."""

    @property
    def channel(self) -> Channel:
        """Raises: Refusal(NO_CHANNEL) where this site was not told of one."""
        if self.bulk is None:
            raise Refusal(NO_CHANNEL)
        limit = self.settings.bulk_mb_per_s
        pace = Pace(None if limit is None else limit * 1e6)
        return Channel(self.bulk.coordinator, self.bulk.ca, read_private_key(self.bulk.key), pace)

    @property
    def name(self) -> str:
        return self.registry.site

    @property
    def door(self) -> Door:
        return Door(self.name, self.settings.policy, self.state)


def read_site(path: Path, state: Path) -> Site:
    """Read a site's file.

    Raises:
        UserError: wrong key, type, value or combination.
    """
    values = read_values(path)
    settings = checked(Settings, values.pop("client", {}), f"{path} [client]")
    return Site(read_registry_config(path, values), settings, state)


def site_of(context: Context) -> Site:
    """The site that this node is.

    `node_config` keys: `site-config` (path of the site's file), `state-dir` (its folder), `key` (path); where there is
    a bulk channel, `bulk` (its address) and `ca` (path); and, only where a simulation plays the hospital, `approve-all`
    (true) and `played-keys` (see `Site`).

    Raises:
        UserError: a key is missing, or the site's file is wrong.
    """
    node = context.node_config
    for key in ("site-config", "state-dir"):
        if key not in node:
            raise UserError(f"The node has no {key!r}.", f"Start it with --node-config '{key}=\"...\"'.")
    site = read_site(Path(str(node["site-config"])), Path(str(node["state-dir"])))
    if "bulk" in node:
        end = BulkEnd(parse_address(str(node["bulk"])), Path(str(node["ca"])), Path(str(node["key"])))
        site = replace(site, bulk=end)
    if "key" in node:
        site = replace(site, key=Path(str(node["key"])))
    if "played-keys" in node:
        site = replace(site, played_keys=Path(str(node["played-keys"])))
    if node.get("approve-all") is True:
        permissive = site.settings.policy.model_copy(update={"approve_all": True})
        site = replace(site, settings=site.settings.model_copy(update={"policy": permissive}))
    return site
