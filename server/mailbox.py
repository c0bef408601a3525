"""Asking named sites over Flower's Grid and taking their answers until a deadline.

A reply is known by the id of the message that it answers, never by what it claims: each message has one
site and one round, and is answered once. A second answer, and an answer to an earlier round, are refused
and named in the event log.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.run_folder import EventLog

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


@dataclass(frozen=True)
class Question:
    site: str
    round: int


@dataclass
class Mailbox:
    """Messages to nodes whose site names are known.

    Attributes:
        nodes: site -> node id.
        outstanding: id of a message without an answer -> whom it asked for which round. Those of earlier
            rounds stay, so that a late answer is seen and named.
    """

    grid: Grid
    nodes: Mapping[str, int]
    log: EventLog
    outstanding: dict[str, Question] = field(default_factory=dict)
    answered: dict[str, Question] = field(default_factory=dict)

    def ask(
        self, kind: str, number: int, contents: Mapping[str, RecordDict], deadline_s: float
    ) -> Iterator[tuple[str, Message]]:
        """Send each site its content and yield (site, reply) as replies come, until all came or time is up.

        A reply may carry an error. Sites that did not answer in time are named in a `site_silent` event.
        """
        end = time.monotonic() + deadline_s
        waiting: set[str] = set()
        for site, content in contents.items():
            message = Message(content, self.nodes[site], kind, ttl=deadline_s, group_id=str(number))
            pushed = list(self.grid.push_messages([message]))
            if not pushed or not pushed[0]:
                self.log.write("site_unreachable", site=site, round=number, kind=kind)
                continue
            self.outstanding[pushed[0]] = Question(site, number)
            waiting.add(pushed[0])
        pause = FIRST_WAIT_S
        while waiting and time.monotonic() < end:
            replies = list(self.grid.pull_messages(list(self.outstanding)))
            for reply in replies:
                question = self.take(reply, waiting)
                if question is not None:
                    yield question.site, reply
            pause = FIRST_WAIT_S if replies else min(pause * 1.5, LONGEST_WAIT_S)
            if waiting and not replies:
                time.sleep(max(0.0, min(pause, end - time.monotonic())))
        for message_id in sorted(waiting):
            site = self.outstanding[message_id].site
            self.log.write("site_silent", site=site, round=number, kind=kind, deadline_s=deadline_s)

    def take(self, reply: Message, waiting: set[str]) -> Question | None:
        """Whose reply this is, if it is one that is waited for; else it is refused and named."""
        message_id = reply.metadata.reply_to_message_id
        if message_id in self.answered:
            question = self.answered[message_id]
            self.log.write("reply_refused", site=question.site, round=question.round, fault="it answered twice")
            return None
        if message_id not in self.outstanding:
            self.log.write("reply_refused", site="", round=-1, fault="it answers no message of this run")
            return None
        question = self.answered[message_id] = self.outstanding.pop(message_id)
        if message_id not in waiting:
            self.log.write("reply_refused", site=question.site, round=question.round, fault="it came too late")
            return None
        waiting.remove(message_id)
        return question
