"""A coordinator and two hospitals, each a process of its own, by the commands that their operators type."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch

from common.address import free_port
from common.processes import Process
from common.study import Study, parse_study, read_study
from server.coordinator import Coordinator, site_states
from server.round_store import Checkpoint, RoundStore
from server.run_folder import read_events
from server.simulation import simulate_federated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMANDS = Path(sys.executable).parent
SITES = ("synthetic-north", "synthetic-south")


def command(name: str, *arguments: object) -> list[str]:
    return [str(COMMANDS / name), *map(str, arguments)]


def do(name: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def done(name: str, *arguments: object, folder: Path) -> str:
    outcome = do(name, *arguments, folder=folder)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


class Consortium:
    """Everything of it in one folder: `coordinator/`, `NAME/` for each site, `study.toml`, `model/`."""

    def __init__(self, folder: Path, study: Path, model: Path) -> None:
        self.folder, self.study, self.model = folder, study, model
        self.port = free_port()
        self.coordinator = Coordinator(folder / "coordinator")
        self.stack = ExitStack()

    def start(self, name: str, *line: str) -> Process:
        log = self.folder / "logs" / f"{name}.log"
        return self.stack.enter_context(Process(list(line), log, dict(os.environ), self.folder))

    def make(self) -> None:
        done("wardround", "certs", "make", "coordinator", "--host", "localhost", folder=self.folder)
        for site in SITES:
            done("wardround-site", "keygen", site, folder=self.folder)
            done("wardround", "sites", "add", "coordinator", site, f"{site}/site.pub", folder=self.folder)
            done("wardround-site", "approve", self.study, "--site", f"sites/{site}.toml", "--yes", folder=self.folder)

    def serve(self) -> Process:
        return self.start("serve", *command("wardround", "serve", "coordinator", "--port", self.port))

    def join_line(self, site: str, key: Path, *options: object) -> list[str]:
        where = f"localhost:{self.port}"
        state = self.folder / site / "state"
        given = ("--coordinator", where, "--ca", "coordinator/certs/ca.pem", "--key", key, "--state", state)
        return command("wardround-site", "join", f"sites/{site}.toml", *given, *options)

    def join(self, site: str) -> Process:
        return self.start(site, *self.join_line(site, Path(site) / "site.key"))

    def wait_for(self, text: str, name: str, timeout_s: float = 90.0) -> None:
        log = self.folder / "logs" / f"{name}.log"
        end = time.monotonic() + timeout_s
        while text not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """kill -9 of this consortium's first process of that name."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if any(Path(part).name == name for part in line) and any(str(self.folder) in part for part in line):
                process.kill()
                return
        raise AssertionError(f"there is no {name}")

    def node_log(self, site: str) -> str:
        """Of the site's present node: each start begins a new one."""
        log = self.folder / site / "state" / "logs" / "node.log"
        return log.read_text() if log.exists() else ""

    def wait_online(self, timeout_s: float = 90.0) -> None:
        end = time.monotonic() + timeout_s
        while (states := site_states(self.coordinator)) != dict.fromkeys(SITES, "online"):
            assert time.monotonic() < end, states
            time.sleep(0.5)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Consortium]:
    folder = tmp_path_factory.mktemp("consortium")
    shipped = Path(__file__).parent.parent / "site_configs" / "synthetic"
    (folder / "sites").mkdir()
    for site in SITES:
        (folder / "sites" / f"{site}.toml").write_text(f'extends = "{shipped / site}.toml"\n')
    study = folder / "study.toml"
    values = {**tiny_study, "sites": {"train": SITES, "public": ["synthetic-public"]}}
    study.write_text(parse_study({**values, "simulation": {"site_configs": "sites"}}, "test").to_toml())
    made = Consortium(folder, study, tiny_model)
    with made.stack:
        made.make()
        made.serve()
        made.wait_for("Ready.", "serve")
        for site in SITES:
            made.join(site)
        made.wait_online()
        yield made


def last_round(arm: Path) -> Checkpoint:
    checkpoint = RoundStore(arm).latest()
    assert checkpoint is not None
    return checkpoint


def simulated(consortium: Consortium, folder: Path) -> Checkpoint:
    study: Study = read_study(consortium.study)
    study_file = folder / "study.toml"
    study_file.write_text(study.to_toml())
    simulate_federated(study_file, study, "simulated", consortium.model, folder / "arm", folder / "events.jsonl")
    return last_round(folder / "arm")


def test_a_deployed_round_gives_the_simulations_model_bit_for_bit(consortium: Consortium, tmp_path: Path) -> None:
    line = ("run", consortium.study, "--coordinator", "coordinator", "--model", consortium.model)
    outcome = do("wardround", *line, folder=consortium.folder)
    logs = [path.read_text() for path in sorted(consortium.folder.rglob("*.log"))]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr + "\n".join(logs)
    (run,) = (consortium.folder / "runs").iterdir()
    events = [event["event"] for event in read_events(run / "events.jsonl")]
    assert events.count("round_finished") == 1 and events.count("update_received") == len(SITES)

    deployed, expected = last_round(run / "seed-1" / "federated"), simulated(consortium, tmp_path)
    assert deployed.model.keys() == expected.model.keys()
    assert all(torch.equal(deployed.model[name], value) for name, value in expected.model.items())
    base = RoundStore(tmp_path / "arm").load(0).model
    assert any(not torch.equal(deployed.model[name], value) for name, value in base.items()), "nothing was learned"
    for site in SITES:
        listed = done("wardround-site", "audit", f"sites/{site}.toml", "--state", f"{site}/state",
                      folder=consortium.folder)  # fmt: skip
        assert "Trained" in listed


def test_a_finished_run_is_not_run_again(consortium: Consortium) -> None:
    (run,) = (consortium.folder / "runs").iterdir()
    done("wardround", "run", "--resume", run, "--coordinator", "coordinator", folder=consortium.folder)
    events = [event["event"] for event in read_events(run / "events.jsonl")]
    assert events.count("round_finished") == 1 and events.count("submitted") == 2


def test_a_site_whose_key_is_not_registered_is_refused(consortium: Consortium) -> None:
    done("wardround-site", "keygen", "stranger", folder=consortium.folder)
    (consortium.folder / "sites" / "stranger.toml").write_text(f'extends = "{SITES[0]}.toml"\nsite = "stranger"\n')
    line = consortium.join_line("stranger", Path("stranger/site.key"), "--attempts", "1")
    outcome = subprocess.run(line, cwd=consortium.folder, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 2
    assert "the coordinator refused this site" in outcome.stderr
    assert set(site_states(consortium.coordinator)) == set(SITES)


def test_a_study_with_an_absent_site_does_not_start(consortium: Consortium) -> None:
    text = consortium.study.read_text().replace(SITES[1], "synthetic-west")
    (consortium.folder / "absent.toml").write_text(text)
    listed = done("wardround", "sites", "list", "coordinator", folder=consortium.folder)
    assert listed.count("online") == len(SITES)
    outcome = do("wardround", "run", "absent.toml", "--model", consortium.model, folder=consortium.folder)
    assert outcome.returncode == 2 and "'synthetic-west' is not known, not online" in outcome.stderr


def test_what_is_killed_is_started_again(consortium: Consortium) -> None:
    """kill -9 of a site's node, then of the SuperLink.

    The site is refused until the coordinator has given up its earlier connection (60 s), and keeps trying.
    """
    consortium.kill("flower-supernode")
    consortium.kill("flower-superlink")
    consortium.wait_for("the superlink ended and was started again", "serve")
    again = {site: consortium.folder / "logs" / f"{site}.log" for site in SITES}
    end = time.monotonic() + 150
    while not (tried := [site for site, log in again.items() if "trying again" in log.read_text()]):
        assert time.monotonic() < end
        time.sleep(0.5)
    for site in tried:
        while again[site].read_text().count("connecting to") < 2 or "SuperNode ID:" not in consortium.node_log(site):
            assert time.monotonic() < end, again[site].read_text()
            time.sleep(0.5)
    consortium.wait_online()
