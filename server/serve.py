"""A coordinator on this machine, watched over: Flower's SuperLink, an executor, and the bulk channel if there is one.
Beside them, in this process, the hub from which the SuperLink fetches the signed bundle.

The control paths of Flower's one port have no authentication: whoever reaches the port and holds `ca.pem`
can start runs. So the default is to listen on loopback; see docs/operators.md for listening further out.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from common.address import Address, answers
from common.errors import UserError
from common.processes import Process, flower_environment, installed_command
from server.bulk_settings import read_bulk_settings
from server.coordinator import Coordinator, node_states
from server.hub import running_hub

START_S = 180.0
"""How long the SuperLink may take to answer: it imports for about 5 s where nothing else runs."""
ASK_S = 15.0
"""Between two questions to the SuperLink that need its database."""
SILENT_S = 60.0
"""A SuperLink that lives and has answered none of them for so long is started again."""

RAY = {"RAY_worker_niceness": "0"}
"""Ray's own 15 starves played sites where anything else runs, until the coordinator takes them for silent."""


class Serving:
    """A running coordinator: SuperLink, executor and, where its folder says so, the bulk channel. Use as a context
    manager.

    A SuperLink that ends, or lives and answers nothing, is started again on its database; the others where they end
    (`watch`).
    """

    def __init__(self, coordinator: Coordinator, address: Address, simulation: bool = False) -> None:
        """`simulation`: sites are played by Flower's simulation engine; none can connect."""
        self.coordinator = coordinator
        self.address = address
        self.simulation = simulation
        self.bulk = read_bulk_settings(coordinator)
        self.environment = flower_environment(coordinator.flower) | (RAY if simulation else {})
        self.children: dict[str, Process] = {}
        self.asked = self.heard = 0.0
        """When the SuperLink was last asked, and when it last answered or was started (monotonic clock)."""
        self.stack = ExitStack()

    def superlink_command(self) -> list[str]:
        files = self.coordinator.certificates
        return [
            installed_command("flower-superlink", self.environment),
            "--host", self.address.host,
            "--port", str(self.address.port),
            "--ssl-ca-certfile", str(files.ca),
            "--ssl-certfile", str(files.server),
            "--ssl-keyfile", str(files.server_key),
            "--enable-supernode-auth",
            "--isolation", "process",
            "--superexec-auth-secret-file", str(self.coordinator.secret),
            "--database", str(self.coordinator.folder / "state.db"),
            "--disable-runtime-dependency-installation",
            *(["--simulation"] if self.simulation else []),
        ]  # fmt: skip

    def executor_command(self) -> list[str]:
        return [
            installed_command("flower-superexec", self.environment),
            "--runtime-api-address", str(self.address.from_here),
            "--root-certificates", str(self.coordinator.certificates.ca),
            "--superexec-auth-secret-file", str(self.coordinator.secret),
        ]  # fmt: skip

    def bulk_command(self) -> list[str]:
        assert self.bulk is not None
        limit = [] if self.bulk.mb_per_s is None else ["--mb-per-s", str(self.bulk.mb_per_s)]
        if self.bulk.round_limit_s is not None:
            limit += ["--round-limit-s", str(self.bulk.round_limit_s)]
        folder, host, port = str(self.coordinator.folder), self.address.host, str(self.bulk.port)
        return [sys.executable, "-m", "server.bulk_service", folder, "--host", host, "--port", port, *limit]

    def start_child(self, name: str, line: list[str]) -> None:
        # An empty folder of its own: Flower puts its start folder on the path of what it starts.
        folder = self.coordinator.folder / "work"
        folder.mkdir(exist_ok=True)
        self.children[name] = Process(line, self.coordinator.logs / f"{name}.log", self.environment, folder)

    def start(self) -> None:
        """Start all and wait until they answer.

        Raises:
            UserError: a port is taken, or the SuperLink or the bulk channel ended; the log is named.
        """
        if answers(self.address.from_here, self.coordinator.certificates.ca):
            raise UserError(f"{self.address}: a coordinator is already running here.", "Stop it or choose --port.")
        self.environment["FLWR_SUPERGRID_API_URL"] = self.stack.enter_context(running_hub(self.coordinator))
        self.start_listening("superlink", self.superlink_command(), self.address)
        self.heard = time.monotonic()
        if self.bulk is not None:
            self.start_listening("bulk", self.bulk_command(), Address(self.address.host, self.bulk.port))
        self.start_child("executor", self.executor_command())

    def start_listening(self, name: str, line: list[str], address: Address) -> None:
        """Raises: UserError where nothing answers at `address` in time."""
        self.start_child(name, line)
        end = time.monotonic() + START_S
        while not answers(address.from_here, self.coordinator.certificates.ca):
            if not self.children[name].running or time.monotonic() > end:
                raise UserError(f"The {name} did not start.", f"See {self.children[name].log}.")
            time.sleep(0.2)

    def answered(self) -> bool:
        """Whether the SuperLink answers what it has to look up. A process can live and fail in that: its database is
        locked, or all its threads wait for something."""
        try:
            node_states(self.coordinator)
        except UserError:
            return False
        return True

    def silent(self) -> bool:
        """Whether the SuperLink has not answered for too long. Asks it now and then."""
        now = time.monotonic()
        if now - self.asked > ASK_S:
            self.asked = now
            if self.answered():
                self.heard = time.monotonic()
        return time.monotonic() - self.heard > SILENT_S

    def watch(self) -> list[str]:
        """Start again what has ended or is silent; returns what happened to each, for an operator."""
        lines: dict[str, Callable[[], list[str]]] = {
            "superlink": self.superlink_command,
            "executor": self.executor_command,
            "bulk": self.bulk_command,
        }
        fallen = {name: "ended" for name, child in self.children.items() if not child.running}
        if "superlink" not in fallen and self.silent():
            fallen["superlink"] = f"answered nothing for {SILENT_S:.0f} s"
        for name in fallen:
            self.children[name].stop()
            self.start_child(name, lines[name]())
        if "superlink" in fallen:
            self.heard = time.monotonic()
        return [f"the {name} {what}" for name, what in fallen.items()]

    def stop(self) -> None:
        for name in ("executor", "bulk", "superlink"):
            if name in self.children:
                self.children[name].stop()
        self.stack.close()

    def __enter__(self) -> "Serving":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
