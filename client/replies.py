"""What may leave this site, a record class for each kind of reply; `egress.py` says which fields leave, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from client.bulk import Channel
from client.outbox import Outbox
from common.bulk.opening import Transfer
from common.federation import Transfer as TransferSpec
from common.questions.counts import KEY
from common.questions.joint import Layout
from common.registry.config import Feature
from common.transfer.manifest import Manifest

if TYPE_CHECKING:  # torch takes seconds to import, and a process that hands out a shard is started for that alone
    from common.update.chain import Step
    from common.update.tensors import State


@dataclass(frozen=True)
class Described:
    """Answer to `query.describe`."""

    site: str


@dataclass(frozen=True)
class Configured:
    """Answer to `query.configure`: the size of this site's part."""

    patients: int
    questions: int
    codebook: str
    """Hash of the codebook behind the questions, for the audit log. Does not leave."""
    private: bool
    """The study has patient-level privacy: then the counts do not leave. Does not leave."""
    changed: str = ""
    """What is to be known of a registry that has changed since the questions were built, for the audit log. Does not
    leave."""


@dataclass(frozen=True)
class Counted:
    """Answer to `query.count`: counts of values or of pairs of values among the training patients.

    A cell leaves if enough patients stand behind it. A value's cell is else left out, its name too; a pair's cell has
    no name, only a place in the vector, and is else sent as 0.
    """

    patients: int
    features: tuple[Feature, ...]
    """How the site declares the columns that are counted, without its raw codes and cleaning; none with pairs."""
    layout: Layout | None
    """Of pairs: the classes that were asked for. Does not leave."""
    cells: pl.DataFrame
    """`count`, `patients` behind it (does not leave) and, of values, the columns of `counts.KEY`."""

    @property
    def names(self) -> list[str]:
        return [name for name in KEY if name in self.cells.columns]


@dataclass(frozen=True)
class Trained:
    """Answer to `train`: what the encoded update is, and what the round's learning was like, on average.

    The update itself leaves in shards (`Handed`), or as the only shard of this answer where it is small.
    """

    outbox: Outbox
    """Where the encoded update lies. Does not leave."""
    manifest: Manifest
    model: "State"
    """What of the coordinator's model the update changes. Does not leave."""
    steps: "list[Step]"
    """The study's update chain, which made the update. Does not leave."""
    transfer: TransferSpec
    """The study's: the size of the shards, and up to which an update goes with the answer. Does not leave."""
    round: int
    patients: int
    questions: int
    reward: float
    informative: float
    """Share of the groups with unequal rewards."""
    generating_s: float
    learning_s: float
    epsilon: float | None = None
    """What the study has cost each patient here with this round, for the audit log; None without patient-level
    privacy. With it the update leaves, and no figure beside it. Does not leave."""


@dataclass(frozen=True)
class Learned(Trained):
    """Answer to `train` in a study with a secure sum: what `Trained` tells, without the update and its manifest. The
    update leaves masked alone (`Masked`)."""


@dataclass(frozen=True)
class Keyed:
    """Answer to `query.sum_keys`: this site's public keys for one secure sum, signed by its identity key."""

    round: int
    advertised: bytes


@dataclass(frozen=True)
class Dealt:
    """Answer to `query.sum_shares`: shares of this site's secrets for that sum, each sealed for its receiver."""

    round: int
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Masked:
    """Answer to `query.sum_vector`: this site's update in whole numbers, under masks that cancel in the sum alone.

    It leaves in shards, or as the only shard of this answer where it is small.
    """

    outbox: Outbox
    """Where it lies. Does not leave."""
    manifest: Manifest
    withheld: Path
    """The update in clear. Does not leave."""
    transfer: TransferSpec
    """See `Trained`. Does not leave."""
    round: int
    patients: int
    """Behind the update. Does not leave."""


@dataclass(frozen=True)
class Agreed:
    """Answer to `query.sum_survivors`: this site's signature under the list of sites that the sum is of."""

    round: int
    signature: bytes


@dataclass(frozen=True)
class Opened:
    """Answer to `query.sum_open`: one share of a secret of each site, never of both secrets of one site."""

    round: int
    seeds: dict[str, bytes]
    """Of the sites that the sum is of."""
    mask_keys: dict[str, bytes]
    """Of those that dropped out."""


@dataclass(frozen=True)
class Evaluated:
    """Answer to `evaluate`: counts over the validation questions."""

    round: int
    patients: int
    questions: int
    right: int
    boxed: int
    seconds: float


@dataclass(frozen=True)
class Handed:
    """Answer to `query.shard`: a part of an update that was let out as a whole."""

    outbox: Outbox
    sha256: str
    number: int


@dataclass(frozen=True)
class Uploaded:
    """Answer to `query.upload`: an update that was let out as a whole goes by the bulk channel, then this answer."""

    outbox: Outbox
    transfer: Transfer
    """Which update, for which round. Does not leave with the answer."""
    channel: Channel
    """Does not leave."""


@dataclass(frozen=True)
class Held:
    """Answer to `query.model`: how many shards of the model are here."""

    shards: int
    of: int
    """How many the coordinator announced. Does not leave."""


@dataclass(frozen=True)
class Acknowledged:
    """Answer to `query.acknowledge`."""

    round: int


@dataclass(frozen=True)
class Summarised:
    """What `wardround-site check --share` tells others. Not an answer to a message: a person takes the file along.

    `cells` has `what` (feature, outcome, task), `name` (as the site declares it; of an outcome with its answer),
    `count` and the `patients` behind it.
    """

    patients: int
    cells: pl.DataFrame


Summing = Learned | Keyed | Dealt | Masked | Agreed | Opened
"""Answers of a secure sum."""
Reply = Described | Configured | Counted | Trained | Evaluated | Handed | Uploaded | Held | Acknowledged | Summing
