"""The site's Flower ClientApp: the messages that a hospital answers.

| message | content | answer |
|---|---|---|
| `query.describe` | - | `site`: its name |
| `query.count` | `study`: json, hash; `layout`: json, for pairs, or none, for values | `counts`, `cells` |
| `query.configure` | `study`: json, hash; maybe `model` (files), `study.model_sha256`, `codebook`: toml | `counts` |
| `train` | `round`, `model`; maybe `shard` | `manifest`, `metrics`; maybe `shard` |
| `evaluate` | the same | `manifest`, `counts` |
| `query.model` | `round`, `payload`; maybe `shard` | `held`: shards |
| `query.shard` | `round`; `wanted`: sha256, number | `shard` |
| `query.upload` | `round`; `wanted`: sha256 | `manifest`: sha256; before it the update, by the bulk channel |
| `query.download` | `round`, `payload` | `held`: shards, all of them |
| `query.sum_keys` | `round`; `sum`: attempt | `manifest`: round; `sum`: advertised |
| `query.sum_shares` | the same; `keys` by site | `manifest`: round; `sealed` by site |
| `query.sum_vector` | the same; `sealed` by site | `manifest`; maybe `shard` |
| `query.sum_survivors` | `round`; `sum`: attempt, survivors | `manifest`: round; `sum`: signature |
| `query.sum_open` | `round`; `sum`: attempt; `signatures` by site | `manifest`: round; `seeds`, `mask_keys` by site |
| `query.acknowledge` | `round`, which is folded | `manifest`: round |

`round` is hash (of the study), run, round, first_step, steps; `model` is sha256, base, payload (docs/transfer.md);
`payload` is a manifest; the five messages of a secure sum are in docs/updates.md. A refusal is a Flower error with a
code and sentence of `client/egress.py`.

A process is started for each message, so what takes seconds to import (torch, transformers, TRL) is imported where a
message needs it.
"""

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.door import Asked
from client.egress import REFUSALS, answer
from client.inbox import announced, take_download, take_shard
from client.messages import (
    approved_study,
    asked_in,
    attempt_in,
    bulk_transfer,
    by_site_in,
    codebook_in,
    known_study,
    layout_in,
    model_folder,
    run_folder,
    shard_in_demand,
    survivors_in,
    task_in,
    update_in_demand,
)
from client.outbox import Outbox
from client.policy import BAD_REQUEST, SITE_CONFIGURATION, Refusal
from client.replies import Acknowledged, Described, Handed, Reply, Uploaded
from client.site import Site, site_of
from common.errors import UserError
from common.lock import only_one

if TYPE_CHECKING:
    from client.secure_sum import SiteSum

app = ClientApp()


def at_the_door(message: Message, context: Context, asked: Asked, work: Callable[[Site], Reply]) -> Message:
    """Find the site that this node is, do its work, and let the outcome through the door."""
    try:
        site = site_of(context)
    except UserError:
        # Without a site there is no folder to log to; the text stays in this process's own output.
        traceback.print_exc(file=sys.stderr)
        return Message(Error(SITE_CONFIGURATION, REFUSALS[SITE_CONFIGURATION]), reply_to=message)
    return answer(site.door, asked, message, lambda: work(site))


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    return at_the_door(message, context, Asked(), lambda site: Described(site.name))


@app.query("count")
def count(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        from client.counting import counted

        return counted(site, approved_study(site, message), layout_in(message))

    return at_the_door(message, context, asked_in(message, "study"), work)


@app.query("configure")
def configure(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        from client.training import SiteStudy

        study = approved_study(site, message)
        return SiteStudy(site, study).configure(model_folder(site, message), codebook_in(message))

    return at_the_door(message, context, asked_in(message, "study"), work)


@app.train()
def train(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        from client.round_model import round_model
        from client.training import SiteStudy

        run = run_folder(site, message)
        with only_one(run / "lock"):
            return SiteStudy(site, known_study(site, message)).train(task_in(message), round_model(run, message))

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        from client.round_model import round_model
        from client.training import SiteStudy

        run = run_folder(site, message)
        with only_one(run / "lock"):
            return SiteStudy(site, known_study(site, message)).evaluate(task_in(message), round_model(run, message))

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.query("model")
def model(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        return take_shard(run_folder(site, message), message)

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.query("shard")
def shard(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        return Handed(Outbox(run_folder(site, message) / "outbox"), *shard_in_demand(message))

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.query("upload")
def upload(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        transfer = bulk_transfer(site, message, "up", update_in_demand(message))
        return Uploaded(Outbox(run_folder(site, message) / "outbox"), transfer, site.channel)

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.query("download")
def download(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        transfer = bulk_transfer(site, message, "down", announced(message).sha256)
        return take_download(run_folder(site, message), message, site.channel, transfer)

    return at_the_door(message, context, asked_in(message, "round"), work)


def summing(message: Message, context: Context, work: "Callable[[SiteSum], Reply]") -> Message:
    """One of the five requests of a secure sum, one at a time."""

    def alone(site: Site) -> Reply:
        from client.secure_sum import SiteSum

        study = known_study(site, message)
        if study.secure_sum is None:
            raise Refusal(BAD_REQUEST)
        part = SiteSum(site, study, task_in(message), attempt_in(message))
        with only_one(part.folder / "sum.lock"):
            return work(part)

    return at_the_door(message, context, asked_in(message, "round"), alone)


@app.query("sum_keys")
def sum_keys(message: Message, context: Context) -> Message:
    return summing(message, context, lambda part: part.keys())


@app.query("sum_shares")
def sum_shares(message: Message, context: Context) -> Message:
    return summing(message, context, lambda part: part.shares(by_site_in(message, "keys")))


@app.query("sum_vector")
def sum_vector(message: Message, context: Context) -> Message:
    def work(part: "SiteSum") -> Reply:
        from client.masking import masked_update

        return masked_update(part, by_site_in(message, "sealed"))

    return summing(message, context, work)


@app.query("sum_survivors")
def sum_survivors(message: Message, context: Context) -> Message:
    return summing(message, context, lambda part: part.agree(survivors_in(message)))


@app.query("sum_open")
def sum_open(message: Message, context: Context) -> Message:
    return summing(message, context, lambda part: part.open(by_site_in(message, "signatures")))


@app.query("acknowledge")
def acknowledge(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        from client.secure_sum import forget

        task, run = task_in(message), run_folder(site, message)
        Outbox(run / "outbox").acknowledged(task.round)
        forget(run.parents[1], task.run, task.round)
        return Acknowledged(task.round)

    return at_the_door(message, context, asked_in(message, "round"), work)
