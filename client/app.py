"""The site's Flower ClientApp: the messages that a hospital answers.

| message | content | answer |
|---|---|---|
| `query.describe` | - | `site`: its name |
| `query.count` | `study`: json, hash; `layout`: json, for pairs, or none, for values | `counts`, `cells` |
| `query.configure` | `study`: json, hash; maybe `model` (files), `study.model_sha256`, `codebook`: toml | `counts` |
| `train` | `round`: hash, run, round, first_step, steps; `model` (tensors) | `update`, `manifest`, `metrics` |
| `evaluate` | the same | `manifest`, `counts` |

A refusal is a Flower error with a code and sentence of `client/egress.py`.
"""

import sys
import traceback
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.counting import counted
from client.egress import REFUSALS, Asked, Described, Reply, answer
from client.messages import (
    approved_study,
    asked_in,
    codebook_in,
    known_study,
    layout_in,
    model_folder,
    model_in,
    task_in,
)
from client.policy import SITE_CONFIGURATION
from client.site import Site, site_of
from client.training import SiteStudy
from common.errors import UserError

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
        return counted(site, approved_study(site, message), layout_in(message))

    return at_the_door(message, context, asked_in(message, "study"), work)


@app.query("configure")
def configure(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        study = approved_study(site, message)
        return SiteStudy(site, study).configure(model_folder(site, message), codebook_in(message))

    return at_the_door(message, context, asked_in(message, "study"), work)


@app.train()
def train(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        return SiteStudy(site, known_study(site, message)).train(task_in(message), model_in(message))

    return at_the_door(message, context, asked_in(message, "round"), work)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    def work(site: Site) -> Reply:
        return SiteStudy(site, known_study(site, message)).evaluate(task_in(message), model_in(message))

    return at_the_door(message, context, asked_in(message, "round"), work)
