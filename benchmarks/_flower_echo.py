"""Bytes there and back in Flower's own messages, over a real SuperLink and SuperNode with TLS and a registered key."""

import json
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import tomli_w

from client.join import Joining, Node
from common.address import Address, free_port
from common.keys import make_site_key
from common.processes import installed_command
from server.certs import make_certificates
from server.coordinator import CONNECTION, Coordinator, add_site, flower, prepare, register_sites, site_states
from server.deployed import FINISHED, status
from server.serve import Serving

SITE = "echo"
POLL_S = 0.2
LONGEST_S = 1800.0
"""After which a run is taken for failed."""
ENDS = {
    "coordinator": ("flower-superlink", "flwr-serverapp"),
    "site": ("flower-supernode", "flwr-clientapp"),
}
"""Flower's processes that hold a message at either end."""
APPS = {
    "echo_server.py": """
        import json
        import os
        import time
        from pathlib import Path
        from flwr.app import Array, ArrayRecord, Message, RecordDict
        from flwr.serverapp import ServerApp

        app = ServerApp()

        @app.main()
        def main(grid, context):
            size, times = int(context.run_config["size"]), int(context.run_config["times"])
            (node,) = grid.get_node_ids()
            seconds = []
            for _ in range(times):
                record = ArrayRecord({"payload": Array("uint8", (size,), "raw", os.urandom(size))})
                start = time.monotonic()
                message = Message(RecordDict({"payload": record}), node, "query", ttl=3600.0)
                (reply,) = grid.send_and_receive([message])
                seconds.append(time.monotonic() - start)
                if reply.content["payload"]["payload"].data != record["payload"].data:
                    raise ValueError("other bytes came back")
                del record, message, reply
            out = Path(str(context.run_config["out"]))
            part = out.with_suffix(".part")
            part.write_text(json.dumps(sum(seconds)))
            os.replace(part, out)
    """,
    "echo_client.py": """
        from flwr.app import Message
        from flwr.clientapp import ClientApp

        app = ClientApp()

        @app.query()
        def echo(message, context):
            return Message(message.content, reply_to=message)
    """,
}


@dataclass(frozen=True)
class Echo:
    """Seconds from sending to having the answer, and the peak memory in bytes of each process by its name."""

    seconds: float
    peaks: dict[str, int]


class InMemory(Serving):
    """A SuperLink that keeps messages in memory, which is faster, and is not blocked by a large one as SQLite was."""

    def superlink_command(self) -> list[str]:
        line = super().superlink_command()
        place = line.index("--database")
        return line[:place] + line[place + 2 :]


class Plain(Node):
    """A site's node with Flower's own executor, which starts a Python for each message."""

    def executor_command(self) -> list[str]:
        ours = super().executor_command()
        return [installed_command("flower-superexec", self.environment), *ours[ours.index("--insecure") :]]


def stage(folder: Path) -> Path:
    """The two apps as a bundle."""
    place = folder / "app"
    place.mkdir()
    for name, text in APPS.items():
        (place / name).write_text(textwrap.dedent(text))
    app = {
        "publisher": "benchmark",
        "fab-include": list(APPS),
        "components": {"serverapp": "echo_server:app", "clientapp": "echo_client:app"},
        "config": {"size": 0, "times": 0, "out": ""},
    }
    project = {"project": {"name": "echo", "version": "1.0.0"}, "tool": {"flwr": {"app": app}}}
    (place / "pyproject.toml").write_text(tomli_w.dumps(project))
    return place


@contextmanager
def consortium(folder: Path) -> Iterator[Coordinator]:
    """A coordinator and one site, connected."""
    coordinator = Coordinator(folder / "coordinator")
    make_certificates(coordinator.folder / "certs", ["localhost"])
    private, public = make_site_key(folder / "site")
    add_site(coordinator, SITE, public)
    address = Address("127.0.0.1", free_port())
    prepare(coordinator, address)
    joining = Joining(folder / "site.toml", folder / "state", address, coordinator.certificates.ca, private)
    with ExitStack() as stack:
        stack.enter_context(InMemory(coordinator, address))
        register_sites(coordinator)
        stack.enter_context(Plain(joining))
        while site_states(coordinator) != {SITE: "online"}:
            time.sleep(0.5)
        yield coordinator


def names_below_us() -> Iterator[tuple[str, Path]]:
    """Flower's processes that we started, and where Linux tells their memory."""
    known = {name for names in ENDS.values() for name in names}
    for process in psutil.Process().children(recursive=True):
        try:
            found = known.intersection(Path(part).name for part in process.cmdline()[:2])
        except psutil.NoSuchProcess:
            continue
        for name in found:
            yield name, Path(f"/proc/{process.pid}/status")


def peak(status_file: Path) -> int:
    """Bytes; 0 of a process that has just ended."""
    try:
        lines = status_file.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def echo(coordinator: Coordinator, place: Path, size: int, times: int, folder: Path) -> Echo:
    """Send `times` messages of `size` bytes one after the other, each there and back."""
    out = folder / f"echo-{size}.json"
    settings = folder / f"echo-{size}.toml"
    settings.write_text(tomli_w.dumps({"size": size, "times": times, "out": str(out)}))
    run = str(flower(coordinator, "run", str(place), CONNECTION, "--run-config", str(settings))["run-id"])
    peaks: dict[str, int] = {}
    end = time.monotonic() + LONGEST_S
    # The coordinator is not asked how the run goes: with a message of half a gigabyte under way it may not answer.
    while not out.exists():
        for name, file in names_below_us():
            peaks[name] = max(peaks.get(name, 0), peak(file))
        if time.monotonic() > end:
            raise TimeoutError(f"run {run} of {size} bytes has not ended; see {coordinator.logs}")
        time.sleep(POLL_S)
    while status(coordinator, run)[0] != FINISHED:
        time.sleep(1.0)
    return Echo(json.loads(out.read_text()), peaks)


def measure(small: int, size: int, times: int) -> tuple[Echo, Echo]:
    """A small message, then the real ones, in one consortium."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = stage(folder)
        with consortium(folder) as coordinator:
            return echo(coordinator, place, small, 1, folder), echo(coordinator, place, size, times, folder)
