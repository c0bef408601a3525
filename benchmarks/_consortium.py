"""A coordinator and hospitals on this machine, each a process of its own, by the commands that operators type."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from common.address import free_port
from common.keys import make_reviewer_key
from common.processes import Process
from common.study import Study, parse_study, read_study
from server.coordinator import Coordinator, site_states
from server.round_store import Checkpoint, RoundStore
from server.simulation import simulate_federated

COMMANDS = Path(sys.executable).parent
SITES = ("synthetic-north", "synthetic-south")


def command(name: str, *arguments: object) -> list[str]:
    return [str(COMMANDS / name), *map(str, arguments)]


def do(name: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments), cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )


def done(name: str, *arguments: object, folder: Path) -> str:
    outcome = do(name, *arguments, folder=folder)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


class Consortium:
    """Everything of it in one folder: `coordinator/`, `NAME/` for each site, `study.toml`, `model/`."""

    executor = "client.executor"
    """What a site's executor is named among the processes."""
    host = "localhost"
    """The coordinator's name for its sites."""

    def __init__(self, folder: Path, study: Path, model: Path, sites: tuple[str, ...] = SITES) -> None:
        self.folder, self.study, self.model, self.sites = folder, study, model, sites
        self.port, self.bulk_port = free_port(), free_port()
        self.coordinator = Coordinator(folder / "coordinator")
        self.stack = ExitStack()

    def start(self, name: str, *line: str) -> Process:
        log = self.folder / "logs" / f"{name}.log"
        return self.stack.enter_context(Process(list(line), log, dict(os.environ), self.folder))

    def make_keys(self) -> dict[str, str]:
        """Site -> its public key, as it stands in a study's `[secure_sum.keys]`."""
        for site in self.sites:
            done("wardround-site", "keygen", site, folder=self.folder)
        return {site: (self.folder / site / "site.pub").read_text().strip() for site in self.sites}

    def make(self) -> None:
        done("wardround", "certs", "make", "coordinator", "--host", self.host, folder=self.folder)
        done("wardround", "bundle", "build", "code.fab", folder=self.folder)
        done("wardround", "bundle", "sign", "code.fab", "--key", "alice/reviewer.key", "--name", "alice",
             folder=self.folder)  # fmt: skip
        done("wardround", "bundle", "publish", "coordinator", "code.fab", folder=self.folder)
        for site in self.sites:
            done("wardround", "sites", "add", "coordinator", site, f"{site}/site.pub", folder=self.folder)
        self.approve(self.study)

    def approve(self, study: Path) -> None:
        for site in self.sites:
            done("wardround-site", "approve", study, "--site", f"sites/{site}.toml", "--yes", folder=self.folder)

    def other_study(self, name: str, **tables: dict[str, Any]) -> Path:
        """The study with these changes to its tables, approved by the sites."""
        values = read_study(self.study).model_dump(mode="json", exclude_none=True)
        changed = {table: values[table] | change for table, change in tables.items()}
        study = self.folder / f"{name}.toml"
        study.write_text(parse_study({**values, **changed, "name": name}, "test").to_toml())
        self.approve(study)
        return study

    def serve(self) -> Process:
        ports = ("--port", self.port, "--bulk-port", self.bulk_port)
        return self.start("serve", *command("wardround", "serve", "coordinator", *ports))

    def addresses(self, site: str) -> tuple[object, ...]:
        """Where a site dials in, as options of its `join`."""
        return "--coordinator", f"{self.host}:{self.port}", "--bulk", f"{self.host}:{self.bulk_port}"

    def join_line(self, site: str, key: Path, *options: object) -> list[str]:
        state = self.folder / site / "state"
        given = (*self.addresses(site), "--ca", "coordinator/certs/ca.pem", "--key", key, "--state", state)
        return command("wardround-site", "join", f"sites/{site}.toml", *given, *options)

    def join(self, site: str) -> Process:
        return self.start(site, *self.join_line(site, Path(site) / "site.key"))

    def wait_for(self, text: str, name: str, timeout_s: float = 600.0) -> None:
        log = self.folder / "logs" / f"{name}.log"
        end = time.monotonic() + timeout_s
        while text not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)

    def flower_process(self, name: str, home: Path) -> psutil.Process:
        """The process of that name among those that have this folder for Flower's own; of several, the last begun: an
        app whose run was stopped while Flower's node fetched its message waits for it for good."""
        found = []
        for process in psutil.process_iter(["name", "cmdline", "environ", "create_time"]):
            line, environment = process.info["cmdline"] or [], process.info["environ"] or {}
            named = process.info["name"] == name or any(Path(part).name == name for part in line)
            if named and environment.get("FLWR_HOME") == str(home):
                found.append(process)
        assert found, f"there is no {name} in {home}"
        return max(found, key=lambda process: process.info["create_time"])

    def at_coordinator(self, name: str) -> psutil.Process:
        return self.flower_process(name, self.coordinator.flower)

    def at_site(self, site: str, name: str) -> psutil.Process:
        return self.flower_process(name, self.folder / site / "state" / "flower")

    def bulk_service(self) -> psutil.Process:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "server.bulk_service" in line and str(self.coordinator.folder) in line:
                return process
        raise AssertionError("there is no bulk service")

    def node_log(self, site: str) -> str:
        """Of the site's present node: each start begins a new one."""
        log = self.folder / site / "state" / "logs" / "node.log"
        return log.read_text() if log.exists() else ""

    def wait_online(self, timeout_s: float = 600.0) -> None:
        end = time.monotonic() + timeout_s
        while (states := site_states(self.coordinator)) != dict.fromkeys(self.sites, "online"):
            assert time.monotonic() < end, states
            time.sleep(0.5)


Kind = TypeVar("Kind", bound=Consortium)
SHIPPED = Path(__file__).parent.parent / "site_configs" / "synthetic"


def site_text(site: str) -> str:
    """How a site's file begins: a hospital that is shipped, or, named `synthetic-NUMBER`, one of the first's kind."""
    if (SHIPPED / f"{site}.toml").exists():
        return f'extends = "{SHIPPED / site}.toml"\n'
    number = int(site.removeprefix("synthetic-"))
    return f'extends = "{SHIPPED / SITES[0]}.toml"\nsite = "{site}"\n[synthetic]\nseed = {number}\n'


@contextmanager
def running_consortium(
    folder: Path,
    values: dict[str, Any],
    model: Path,
    sites: tuple[str, ...] = SITES,
    kind: Callable[..., Kind] = Consortium,
) -> Iterator[Kind]:
    """Coordinator and sites, online.

    Args:
        values: of the study, without its sites and without the keys of its secure sum, if it has one.
        kind: how its parts are connected.
    """
    (folder / "sites").mkdir()
    line = make_reviewer_key(folder / "alice")[1].read_text().strip()
    for site in sites:
        text = f'[client.policy.reviewers]\nalice = "{line}"\n'
        (folder / "sites" / f"{site}.toml").write_text(site_text(site) + text)
    study = folder / "study.toml"
    made = kind(folder, study, model, sites)
    keys = made.make_keys()
    named = {**values, "sites": {"train": sites, "public": ["synthetic-public"]}}
    if "secure_sum" in values:
        named["secure_sum"] = {**values["secure_sum"], "keys": keys}
    study.write_text(parse_study({**named, "simulation": {"site_configs": "sites"}}, "test").to_toml())
    with made.stack:
        made.make()
        made.serve()
        made.wait_for("Ready.", "serve")
        for site in sites:
            made.join(site)
        made.wait_online()
        yield made


def last_round(arm: Path) -> Checkpoint:
    checkpoint = RoundStore(arm).latest()
    assert checkpoint is not None
    return checkpoint


def simulated(consortium: Consortium, folder: Path, file: Path) -> Checkpoint:
    """The last round of the study in this file, played in one process."""
    study: Study = read_study(file)
    study_file = folder / "study.toml"
    study_file.write_text(study.to_toml())
    simulate_federated(study_file, study, "simulated", consortium.model, folder / "arm", folder / "events.jsonl")
    return last_round(folder / "arm")
