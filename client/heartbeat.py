"""While a site trains, the coordinator hears how many steps are done.

Flower's node takes one message at a time, so a question would be answered when the training is over. The heartbeat goes
the other way: the process that trains dials the coordinator's bulk channel, where there is one, proves itself as for a
transfer, and says a number.
"""

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from client.egress import beat_of
from client.progress import Progress
from client.site import BulkEnd, Site
from common.bulk.beat import METHOD, Beat
from common.bulk.opening import SERVICE, options, to_sign
from common.keys import read_private_key, sign

BEAT_S = 15.0
"""Least time between two beats."""
LONGEST_S = 600.0
"""Where the coordinator does not hear, the next tries are further apart, up to this."""
CALL_S = 5.0
"""What a call may take: the training waits for it."""


@dataclass
class Heartbeat:
    """Attributes:
    end: how the coordinator is reached.
    pause, due: seconds between two beats, and when the next one may go out (monotonic clock).
    """

    site: Site
    end: BulkEnd
    pause: float = BEAT_S
    due: float = field(default_factory=time.monotonic)

    def tell(self, progress: Progress) -> None:
        """Say how far the training is, if it is time to. Nothing depends on whether it is heard."""
        if time.monotonic() < self.due:
            return
        beat = beat_of(self.site.door, progress)
        if beat is None:
            return
        self.pause = BEAT_S if send(self.end, beat) else min(2 * self.pause, LONGEST_S)
        self.due = time.monotonic() + self.pause


def send(end: BulkEnd, beat: Beat) -> bool:
    """Whether the coordinator has taken it."""
    key, challenges = read_private_key(end.key), queue.SimpleQueue[bytes | None]()

    def requests() -> Iterator[bytes]:
        yield beat.model_dump_json().encode()
        challenge = challenges.get()
        if challenge is not None:
            yield sign(key, to_sign(beat, challenge))

    credentials = grpc.ssl_channel_credentials(end.ca.read_bytes())
    with grpc.secure_channel(str(end.coordinator), credentials, options()) as connection:
        try:
            for reply in connection.stream_stream(f"/{SERVICE}/{METHOD}")(requests(), timeout=CALL_S):
                challenges.put(reply)
        except grpc.RpcError:
            return False
        finally:
            challenges.put(None)
    return True
