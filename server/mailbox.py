"""Asking named sites over Flower's Grid and taking their answers until a deadline.

A reply is known by the id of the message that it answers, never by what it claims: each message has one
site and one round, and is answered once. A second answer, and an answer to an earlier round, are refused
and named in the event log.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.run_folder import EventLog

Names = Callable[[], frozenset[str]]


def nobody() -> frozenset[str]:
    return frozenset()


FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0
SHARE = 0.05
"""Of the time that was waited so far, that the next pause takes: an answer is found late by as much at most."""


@dataclass(frozen=True)
class Question:
    site: str
    round: int


@dataclass
class Pace:
    """Pauses between looks for replies: longer and longer while none comes. `since`: when the last one came."""

    since: float = field(default_factory=time.monotonic)

    def wait(self, came: bool, end: float) -> None:
        """Args: `came`: a reply came at the last look; `end`: of the waiting, on the monotonic clock."""
        now = time.monotonic()
        if came:
            self.since = now
            return
        pause = min(max(FIRST_WAIT_S, SHARE * (now - self.since)), LONGEST_WAIT_S)
        time.sleep(max(0.0, min(pause, end - now)))


@dataclass
class Mailbox:
    """Messages to nodes whose site names are known.

    Attributes:
        nodes: site -> node id.
        outstanding: id of a message without an answer -> whom it asked for which round. Those of earlier
            rounds stay, so that a late answer is seen and named.
        revoked: the sites whose keys are revoked now.
        told: those that the log names as revoked.
    """

    grid: Grid
    nodes: Mapping[str, int]
    log: EventLog
    outstanding: dict[str, Question] = field(default_factory=dict)
    answered: dict[str, Question] = field(default_factory=dict)
    revoked: Names = nobody
    told: set[str] = field(default_factory=set)

    def gone(self, sites: Collection[str], number: int) -> frozenset[str]:
        """Which of these sites were revoked: nobody waits for them. Each is named in the log once."""
        gone = self.revoked().intersection(sites)
        for site in sorted(gone - self.told):
            self.told.add(site)
            self.log.write("site_revoked", site=site, round=number)
        return gone

    def post(self, site: str, kind: str, number: int, content: RecordDict, ttl_s: float) -> str | None:
        """Send one message; returns its id, or None where it cannot be sent."""
        message = Message(content, self.nodes[site], kind, ttl=ttl_s, group_id=str(number))
        pushed = list(self.grid.push_messages([message]))
        if not pushed or not pushed[0]:
            self.log.write("site_unreachable", site=site, round=number, kind=kind)
            return None
        self.outstanding[pushed[0]] = Question(site, number)
        return pushed[0]

    def collect(self, waiting: Collection[str]) -> list[tuple[str, Message]]:
        """The replies that are there now, by the id of the message that each answers, of those in `waiting`."""
        if not self.outstanding:
            return []
        replies = list(self.grid.pull_messages(list(self.outstanding)))
        return [(str(m.metadata.reply_to_message_id), m) for m in replies if self.take(m, waiting)]

    def take(self, reply: Message, waiting: Collection[str]) -> bool:
        """Whether this reply is waited for; else it is refused and named."""
        message_id = reply.metadata.reply_to_message_id
        if message_id in self.answered:
            question = self.answered[message_id]
            self.log.write("reply_refused", site=question.site, round=question.round, fault="it answered twice")
            return False
        if message_id not in self.outstanding:
            self.log.write("reply_refused", site="", round=-1, fault="it answers no message of this run")
            return False
        question = self.answered[message_id] = self.outstanding.pop(message_id)
        if message_id not in waiting:
            self.log.write("reply_refused", site=question.site, round=question.round, fault="it came too late")
            return False
        return True

    def ask(
        self, kind: str, number: int, contents: Mapping[str, RecordDict], deadline_s: float
    ) -> Iterator[tuple[str, Message]]:
        """Send each site its content and yield (site, reply) as replies come, until all came or time is up.

        A reply may carry an error. Sites that did not answer in time are named in a `site_silent` event.
        """
        end = time.monotonic() + deadline_s
        waiting: dict[str, str] = {}
        for site, content in contents.items():
            message_id = self.post(site, kind, number, content, deadline_s)
            if message_id is not None:
                waiting[message_id] = site
        pace = Pace()
        while waiting and time.monotonic() < end:
            came = self.collect(waiting.keys())
            for message_id, reply in came:
                yield waiting.pop(message_id), reply
            if waiting:
                pace.wait(bool(came), end)
        for site in sorted(waiting.values()):
            self.log.write("site_silent", site=site, round=number, kind=kind, deadline_s=deadline_s)
