"""The wire between a site and the coordinator, which can be cut, damaged or lose an answer."""

import socket
import threading
from contextlib import suppress
from enum import Enum, auto


class Fault(Enum):
    CUT = auto()
    DAMAGED = auto()
    """A bit is flipped: under TLS the end that hears it gives the connection up."""
    ANSWER_LOST = auto()
    """What was asked arrives; of what is answered nothing does."""


class Connection:
    """One of a site's, and what has passed of it since the relay was last told of a fault."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends = {True: (near, far), False: (far, near)}
        """By direction, up or not: where its bytes come from and where they go."""
        self.passed = {True: 0, False: 0}
        self.mute = False

    def close(self) -> None:
        for end in self.ends[True]:
            with suppress(OSError):  # the other direction has done it
                end.shutdown(socket.SHUT_RDWR)  # `close` alone would not wake who waits for more to come
            end.close()


class Relay:
    """Listens on `port` on loopback and passes on what comes, to the service there and back.

    Attributes:
        hits: how many connections were hit by a fault.
    """

    def __init__(self, service: int) -> None:
        self.service, self.hits = service, 0
        self.armed: tuple[Fault, bool, int] | None = None
        self.connections: list[Connection] = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def hit(self, fault: Fault, up: bool, after: int) -> None:
        """Once, the first connection through which from now on so many bytes pass in this direction."""
        with self.lock:
            for connection in self.connections:
                connection.passed = {True: 0, False: 0}
            self.armed = (fault, up, after)

    def accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.service))
            except OSError:
                near.close()  # the service is being started again
                continue
            connection = Connection(near, far)
            self.connections.append(connection)
            for up in (True, False):
                threading.Thread(target=self.pass_on, args=(connection, up), daemon=True).start()

    def pass_on(self, connection: Connection, up: bool) -> None:
        source, target = connection.ends[up]
        try:
            while data := source.recv(65536):
                passed = self.through(connection, up, data)
                if passed is None:
                    break
                target.sendall(passed)
        except OSError:
            pass  # the other direction was closed
        connection.close()

    def through(self, connection: Connection, up: bool, data: bytes) -> bytes | None:
        """What arrives of these bytes; None where the connection is cut."""
        with self.lock:
            connection.passed[up] += len(data)
            if connection.mute and not up:
                return None
            if self.armed is None or self.armed[1] != up or connection.passed[up] <= self.armed[2]:
                return data
            (fault, _, _), self.armed = self.armed, None
            self.hits += 1
            connection.mute = fault is Fault.ANSWER_LOST
            if fault is Fault.CUT:
                return None
            return data[:-1] + bytes([data[-1] ^ 1]) if fault is Fault.DAMAGED else data
