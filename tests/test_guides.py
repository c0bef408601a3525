"""The operators' guides, walked as they stand: one coordinator, its proxy, one hospital, from nothing to a first round.

Every command of docs/operators.md, docs/coordinator.md and docs/site_operator.md is run, in the order of work of
docs/operators.md, or stands in NOT_HERE with the reason. Only REPLACED is changed in them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tomli_w

from common.address import Address, answers, free_port
from common.processes import Process
from server.coordinator import Coordinator, site_states

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("operators", "coordinator", "site_operator")}
NEEDED = ("nginx", "envsubst", "ssh-keygen")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
PROGRAMS = r"(?:wardround|wardround-site|ssh-keygen|nginx|chmod)"

NOT_HERE = {
    "docker/build.sh": "needs Docker Compose; tests/test_images.py builds the images and runs these commands in them",
    "python3 -m venv /opt/vllm": "loads gigabytes for a GPU; tests/common/grpo/test_vllm.py, where vLLM is installed",
}
NAMES = {"wardround-site check --connect"}
"""Inline, what names a command and is none that could be typed."""


def blocks(page: str) -> list[str]:
    """Its fenced commands; other fences name their language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if not language]


def inline(page: str) -> list[str]:
    """Commands with arguments in its sentences and tables."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}
    return sorted(span for span in spans if re.match(rf"{PROGRAMS}( \S+){{2,}}$", span) and span not in NAMES)


def commands() -> set[str]:
    return {text for page in PAGES for text in (*blocks(page), *inline(page))}


class Walk:
    """A folder in which the guides' commands are run; `said` is what the last one printed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.port, self.bulk, self.proxy = (str(free_port()) for _ in range(3))
        self.coordinator = Coordinator(folder / "coordinator")
        self.environment = {**os.environ, "PATH": PATH, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
        self.said = ""

    def replaced(self, text: str) -> str:
        """Names, ports and places that are others on this machine: the whole table."""
        dialled = f"localhost:{self.proxy}"
        table = {
            "coordinator.example.org:8000": dialled,
            "coordinator.example.org:8001": dialled,
            "--host coordinator.example.org": "--host localhost",
            "--port 8000": f"--port {self.port}",
            "--bulk-port 8001": f"--bulk-port {self.bulk}",
            "WARDROUND_PORT=443": f"WARDROUND_PORT=127.0.0.1:{self.proxy}",
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
            "127.0.0.1:8001": f"127.0.0.1:{self.bulk}",
            "-lf site.pub": "-lf synthetic-north/site.pub",
            "600 site.key": "600 synthetic-north/site.key",
            "status SITE": "status sites/synthetic-north.toml --state synthetic-north/state",
            "-s reload": "-s reload -p $PWD/proxy -c $PWD/proxy/nginx.conf",
            "--to FOLDER": "--to exported",
        }
        for written, here in table.items():
            text = text.replace(written, here)
        return re.sub(r"\bRUN\b", lambda _: str(self.run), text)

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "runs").glob("*-2*")
        return run

    def type(self, text: str, expected: str) -> None:
        line = ["bash", "-euc", self.replaced(text)]
        given = {"input": "y\n", "capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run(line, cwd=self.folder, env=self.environment, check=False, **given)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        assert expected in done.stdout, f"{text}\n{done.stdout}"

    def stay(self, text: str, name: str, ready: Callable[[], bool]) -> None:
        """Run a block whose last command stays until it is stopped."""
        *before, last = self.replaced(text).replace("\\\n", " ").strip().splitlines()
        line = ["bash", "-euc", "\n".join([*before, f"exec {last}"])]
        log = self.folder / "logs" / f"{name}.log"
        process = self.stack.enter_context(Process(line, log, self.environment, self.folder))
        end = time.monotonic() + 240
        while not ready():
            assert process.running and time.monotonic() < end, f"{text}\n{log.read_text()}"
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.folder / "logs").glob("*.log")))

    # What people do between the commands.

    def hand_over_the_ca(self) -> None:
        shutil.copy(self.coordinator.certificates.ca, self.folder / "ca.pem")

    def write_the_site_file(self) -> None:
        """What the hospital declares, and the reviewer that it names, by the block of the guide."""
        (naming,) = re.findall(r"```toml\n(\[client\.policy\.reviewers\]\n.*?)```", PAGES["site_operator"], re.DOTALL)
        key = (self.folder / "alice" / "reviewer.pub").read_text().strip()
        shipped = ROOT / "site_configs" / "synthetic" / "synthetic-north.toml"
        text = f'extends = "{shipped}"\n' + re.sub(r'"ssh-ed25519 .*"', f'"{key}"', naming)
        place = self.folder / "sites" / "synthetic-north.toml"
        place.parent.mkdir()
        place.write_text(text)

    def make_another_key(self) -> None:
        self.type("wardround-site keygen new", "site.pub")

    # What a command that stays waits for.

    def serves(self) -> bool:
        return "Ready." in (self.folder / "logs" / "serve.log").read_text()

    def proxied(self) -> bool:
        return answers(Address("localhost", int(self.proxy)), self.coordinator.certificates.ca)

    def joined(self) -> bool:
        return site_states(self.coordinator) == {"synthetic-north": "online"}


Step = tuple[str, str, str | Callable[[Walk], bool], Callable[[Walk], None] | None]
ORDER: list[Step] = [
    # How a block or an inline command begins; what it prints, or that it stays and what it then does; what follows.
    ("coordinator", "wardround plan study.toml\nwardround simulate", "Accuracy, %", None),
    ("coordinator", "wardround certs make coordinator", Walk.serves, Walk.hand_over_the_ca),
    ("coordinator", "export WARDROUND_PORT", Walk.proxied, None),
    ("coordinator", "wardround health coordinator", "no round is late", None),
    ("coordinator", "wardround bundle build", "written: code.fab", None),
    ("coordinator", "wardround bundle keygen alice", "the code that is installed here: yes", None),
    ("coordinator", "wardround bundle verify code.fab --reviewer", "signed by alice: yes", Walk.write_the_site_file),
    ("site_operator", "wardround-site check sites/synthetic-north.toml --study study.toml\n", "patients", None),
    ("site_operator", "wardround-site keygen", "public key, send this one", None),
    ("site_operator", "ssh-keygen -lf site.pub", "(ECDSA)", None),
    ("site_operator", "chmod 600 site.key", "", None),
    ("coordinator", "wardround sites add", "synthetic-north", None),
    ("site_operator", "wardround-site approve", "approved: sites/synthetic-north.toml", None),
    ("site_operator", "wardround-site check sites/synthetic-north.toml --study study.toml --state",
     "A round could work here.", None),
    ("site_operator", "wardround-site join", Walk.joined, None),
    ("operators", "wardround sites list coordinator", "online", None),
    ("coordinator", "wardround run study.toml", "round 1 of 1 finished", None),
    ("coordinator", "wardround status RUN", "synthetic-north 1.000", None),
    ("operators", "wardround sites list coordinator --run RUN", "trained in round 1", None),
    ("coordinator", "wardround export RUN --to FOLDER", "exported", None),
    ("coordinator", "wardround run --resume RUN --coordinator coordinator", "report.html", None),
    ("site_operator", "wardround-site audit", "Trained", None),
    ("site_operator", "wardround-site status sites/synthetic-north.toml", "trained in round 1", None),
    ("operators", "wardround-site status SITE", "the coordinator has taken this site's key", None),
    ("coordinator", "wardround certs renew coordinator", "for `serve`", None),
    ("coordinator", "nginx -s reload", "", Walk.make_another_key),
    ("coordinator", "wardround sites rotate", "synthetic-north: revoked", None),
]  # fmt: skip


def found(page: str, start: str) -> str:
    """The one command of a page that begins so: a whole inline command, or else a block."""
    matching = [text for text in inline(page) if text == start] or [
        text for text in (*blocks(page), *inline(page)) if text.startswith(start)
    ]
    assert len(matching) == 1, (page, start, matching)
    return matching[0]


def test_every_command_of_the_guides_is_run_or_said_not_to_be() -> None:
    run = {found(page, start) for page, start, _, _ in ORDER}
    left = commands() - run
    assert all(any(text.startswith(start) for start in NOT_HERE) for text in left), left
    assert all(any(text.startswith(start) for text in left) for start in NOT_HERE), "NOT_HERE names what is not there"


def test_what_a_guide_begins_with_is_found_and_another_is_not() -> None:
    assert found("operators", "wardround sites list coordinator") == "wardround sites list coordinator"
    with pytest.raises(AssertionError):
        found("operators", "wardround sites forget")


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    """A folder with a study of one hospital that takes seconds, and the repository's `docker/`."""
    values = tomllib.loads((ROOT / "studies" / "consortium.toml").read_text())
    values["sites"] |= {"train": ["synthetic-north"], "unseen": []}
    values["model"]["builtin"] = {"hidden": 32, "layers": 1, "warmup_steps": 150, "warmup_batch": 8}
    values["rounds"] |= {"rounds": 1, "local_steps": 2, "validation_patients": 12}
    values["evaluation"]["patients_per_site"] = 5
    values["simulation"]["site_configs"] = str(ROOT / "site_configs" / "synthetic")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
    (tmp_path / "docker").symlink_to(ROOT / "docker")
    with ExitStack() as stack:
        yield Walk(tmp_path, stack)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_from_nothing_to_a_first_round_by_the_guides(walk: Walk) -> None:
    for number, (page, start, outcome, after) in enumerate(ORDER):
        text = found(page, start)
        if number == 1:
            # The run of the simulation; what follows means the consortium's.
            shutil.move(walk.folder / "runs", walk.folder / "simulated")
        if isinstance(outcome, str):
            walk.type(text, outcome)
        else:
            name = text.split()[-1] if "serve" not in text else "serve"
            walk.stay(text, Path(name).stem, lambda outcome=outcome: outcome(walk))
        if after is not None:
            after(walk)
    (simulated,) = (walk.folder / "simulated").iterdir()
    last = [run / "seed-1" / "federated" / "round-0001.json" for run in (walk.run, simulated)]
    assert len({json.loads(path.read_text())["model_sha256"] for path in last}) == 1, "the simulation's model"
