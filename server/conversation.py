"""Several messages to a site in turn, with all sites side by side, and what is lost on the way asked again.

A talk is a generator: it yields what it wants to ask a site, is sent the reply, and returns its result. Every request
may be asked again without harm, since sites answer each of them as often as it comes with the same words; so where
Flower reports that a message or its reply was lost, the same request goes out again after a pause.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict

from server.mailbox import Mailbox, Pace

ATTEMPTS = 8
"""How often a request goes out at most. The pauses between add up to about four minutes: a site that was killed
is let in again only when the coordinator has given up its earlier connection, after a minute or more."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
SITES_OWN = 1000
"""Error codes from here on are a site's own refusals (client/egress.py); below it is Flower that failed."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    kind: str
    content: RecordDict
    patience_s: float | None = None
    """An answer that takes longer is taken for lost; None where the work behind it may take its time."""


Talk = Generator[Request, Message, Result]


def lost(reply: Message) -> bool:
    """Whether Flower failed to bring the message, to do its work or to bring the reply."""
    return reply.has_error() and reply.error.code < SITES_OWN


@dataclass
class Turn(Generic[Result]):
    """A site's talk and what it is asked now."""

    site: str
    talk: Talk[Result]
    request: Request
    attempt: int = 1
    due: float = 0.0
    """When the request goes out, or, once it has, when its answer is taken for lost (monotonic clock)."""

    def again(self) -> None:
        self.due = time.monotonic() + min(FIRST_PAUSE_S * 2 ** (self.attempt - 1), LONGEST_PAUSE_S)
        self.attempt += 1

    def next(self, request: Request) -> None:
        self.request, self.attempt, self.due = request, 1, 0.0


class Conversation(Generic[Result]):
    """All sites' talks of one kind in one round. `pending` are to be sent, `waiting` are sent: message id -> turn."""

    def __init__(self, box: Mailbox, number: int, deadline_s: float) -> None:
        self.box, self.number = box, number
        self.end = time.monotonic() + deadline_s
        self.pending: list[Turn[Result]] = []
        self.waiting: dict[str, Turn[Result]] = {}

    def begin(self, site: str, talk: Talk[Result]) -> Iterator[tuple[str, Result]]:
        try:
            self.pending.append(Turn(site, talk, next(talk)))
        except StopIteration as done:
            yield site, done.value

    def send(self) -> None:
        """Send what is due, and give up on answers that are overdue."""
        now = time.monotonic()
        for message_id, turn in list(self.waiting.items()):
            if turn.request.patience_s is not None and turn.due <= now and turn.attempt < ATTEMPTS:
                del self.waiting[message_id]
                self.retry(turn, "no answer in time")
        ready = [turn for turn in self.pending if turn.due <= now]
        self.pending = [turn for turn in self.pending if turn.due > now]
        for turn in ready:
            ttl = max(1.0, self.end - now)
            posted = self.box.post(turn.site, turn.request.kind, self.number, turn.request.content, ttl)
            if posted is not None:
                turn.due = now + (turn.request.patience_s or 0.0)
                self.waiting[posted] = turn
            elif turn.attempt < ATTEMPTS:
                self.retry(turn, "it could not be sent")

    def retry(self, turn: Turn[Result], fault: str) -> None:
        turn.again()
        self.pending.append(turn)
        self.box.log.write("asked_again", site=turn.site, round=self.number, kind=turn.request.kind,
                           attempt=turn.attempt, fault=fault)  # fmt: skip

    def hear(self, turn: Turn[Result], reply: Message) -> Iterator[tuple[str, Result]]:
        if lost(reply) and turn.attempt < ATTEMPTS:
            self.retry(turn, reply.error.reason or f"Flower's error {reply.error.code}")
            return
        try:
            turn.next(turn.talk.send(reply))
            self.pending.append(turn)
        except StopIteration as done:
            yield turn.site, done.value

    def dismiss(self) -> None:
        """End the talks with sites that were revoked meanwhile."""
        turns = [*self.pending, *self.waiting.values()]
        gone = self.box.gone([turn.site for turn in turns], self.number)
        for turn in turns if gone else ():
            if turn.site in gone:
                turn.talk.close()
        self.pending = [turn for turn in self.pending if turn.site not in gone]
        self.waiting = {message: turn for message, turn in self.waiting.items() if turn.site not in gone}

    def go(self) -> Iterator[tuple[str, Result]]:
        pace = Pace()
        while (self.pending or self.waiting) and time.monotonic() < self.end:
            self.dismiss()
            self.send()
            came = self.box.collect(self.waiting.keys())
            for message_id, reply in came:
                yield from self.hear(self.waiting.pop(message_id), reply)
            if self.pending or self.waiting:
                soonest = min((turn.due for turn in self.pending), default=self.end)
                pace.wait(bool(came), min(self.end, soonest))

    def silent(self) -> list[Turn[Result]]:
        return sorted([*self.pending, *self.waiting.values()], key=lambda turn: turn.site)


def converse(
    box: Mailbox, number: int, talks: Mapping[str, Talk[Result]], deadline_s: float
) -> Iterator[tuple[str, Result]]:
    """Lead every site's talk, and yield (site, result) as talks end, until all have or time is up.

    A talk hears of Flower's errors only after the last attempt. Sites whose talk did not end are named in a
    `site_silent` event.

    Args:
        number: the round, 0 for the base model.
    """
    leading: Conversation[Result] = Conversation(box, number, deadline_s)
    for site, talk in talks.items():
        yield from leading.begin(site, talk)
    yield from leading.go()
    for turn in leading.silent():
        turn.talk.close()
        box.log.write("site_silent", site=turn.site, round=number, kind=turn.request.kind, deadline_s=deadline_s)
