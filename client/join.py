"""A hospital's side of the connection: Flower's SuperNode and its executor, watched over.

Everything is outbound: the SuperNode asks the coordinator for messages over TLS. On this machine it listens
on loopback only, for the executor, which proves itself with a secret.

    STATE/
      node.toml         what the app is told about this site: its file, folder and key, and the bulk channel's address
      reviewers.json    whose signature a bundle needs, where the site's policy names reviewers
      executor.secret
      flower/           Flower's own folder
      logs/
"""

import json
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from client.site import read_site
from common.address import Address, answers, free_port, server_certificate
from common.certificates import DailyLook, Validity, validity_in, validity_of
from common.errors import UserError
from common.keys import write_private
from common.lock import Held, only_one
from common.processes import Process, flower_environment, installed_command

SETTLED_S = 60.0
"""A node that ran this long was connected: the next failure starts again with the shortest pause."""
LONGEST_PAUSE_S = 30.0
REFUSED = 305
"""Flower's exit code for every connection that is not let in."""
REASONS = {
    302: "the site's private key cannot be read",
    REFUSED: "the coordinator refused this site: its key is not registered or was revoked, another node with this key "
    "is connected (or was until a minute ago), or this machine's clock is wrong",
    606: "the coordinator runs another version of Flower",
}
"""What Flower's exit codes mean to an operator."""
UNASKED = b"SuperNode terminated gracefully"
"""What a node writes when the coordinator refuses the signature of a call, of which its time is a part; it then ends
without a code."""
DEAF = b"SSL/TLS handshake error detected."
"""What a node writes when a connection ends while TLS begins, as it does where something between the two takes
connections for a coordinator that is away. It lives on, without its heartbeat, and is offline for good."""
LEFT = re.compile(
    rb"(?:ERROR\W*(?:\[0m)?\W*(?:Failed to (?:send|receive) message \w+: )?|httpx\.HTTPStatusError: )Server error '5"
)
"""What a node writes when the coordinator fails to answer a call, as it does where its database is locked. The process
lives on, but asks for no message any more, or is without its heartbeat, or has lost a message or an answer of which the
coordinator hears nothing before its deadline. That a node ends, it hears."""
WRONG_CLOCK = (
    "the node ended by itself, as it does when the coordinator refuses the signature of a call: this machine's clock "
    "may be 5 seconds before the coordinator's and 5 minutes behind it, not more"
)


@dataclass(frozen=True)
class Joining:
    """What a site needs to take part. All paths are absolute."""

    config: Path
    state: Path
    coordinator: Address
    ca: Path
    key: Path
    bulk: Address | None = None
    """The coordinator's bulk channel, where it has one."""
    reviewers: dict[str, str] = field(default_factory=dict)
    """Whose signature a bundle needs: name -> public key. With none, any bundle runs."""


def check(joining: Joining) -> str:
    """Refuse what cannot work before anything starts; returns the site's name.

    Raises:
        UserError: the site's file is wrong, a file is missing, others can read the key, or the coordinator's
            certificate is not one of the given CA.
    """
    site = read_site(joining.config, joining.state)
    check_files(joining)
    answers(joining.coordinator, joining.ca)
    return site.name


def check_files(joining: Joining) -> None:
    """Raises: UserError: the CA certificate or the key is missing, or others can read the key."""
    for path, what in ((joining.ca, "the coordinator's CA certificate"), (joining.key, "this site's private key")):
        if not path.is_file():
            raise UserError(f"{path}: {what} is not there.", "Give its path.")
    if stat.S_IMODE(joining.key.stat().st_mode) & 0o077:
        raise UserError(f"{joining.key}: others can read this key.", f"Run `chmod 600 {joining.key}`.")


def certificates(joining: Joining) -> Iterator[Validity]:
    """Those that the connection stands on: the CA that this site was given, and the coordinator's where it answers.

    Raises:
        UserError: the coordinator answers with one that is refused.
    """
    yield validity_in(f"the CA in {joining.ca}", joining.ca)
    given = server_certificate(joining.coordinator, joining.ca)
    if given is not None:
        yield validity_of(f"the certificate of {joining.coordinator}", given)


@contextmanager
def only_node(state: Path) -> Iterator[None]:
    """Hold the site's folder: two nodes with one key would each cut the other off.

    Raises:
        UserError: another process holds it.
    """
    try:
        with only_one(state / "join.lock", 0.0):
            yield
    except Held:
        raise UserError(f"{state}: this site has joined already.", "Stop the other process first.") from None


class Node:
    """A running SuperNode with its executor. Use as a context manager."""

    def __init__(self, joining: Joining) -> None:
        self.joining = joining
        self.environment = flower_environment(joining.state / "flower")
        self.secret = joining.state / "executor.secret"
        self.reviewers = joining.state / "reviewers.json"
        self.port = free_port()
        self.children: list[Process] = []

    def write_files(self) -> Path:
        state = self.joining.state
        (state / "flower").mkdir(parents=True, exist_ok=True)
        # The executor is put on a fresh empty folder: Flower puts its start folder on the path of the app.
        (state / "work").mkdir(exist_ok=True)
        if not self.secret.exists():
            write_private(self.secret, secrets.token_bytes(32))
        place = state / "node.toml"
        values = {"site-config": str(self.joining.config), "state-dir": str(state), "key": str(self.joining.key)}
        if self.joining.bulk is not None:
            values |= {"bulk": str(self.joining.bulk), "ca": str(self.joining.ca)}
        place.write_text(tomli_w.dumps(values), encoding="utf-8")
        # Flower reads YAML, of which JSON is a part.
        self.reviewers.write_text(json.dumps(self.joining.reviewers, indent=1), encoding="utf-8")
        return place

    def node_command(self, settings: Path) -> list[str]:
        return [
            installed_command("flower-supernode", self.environment),
            "--superlink", str(self.joining.coordinator),
            "--root-certificates", str(self.joining.ca),
            "--auth-supernode-private-key", str(self.joining.key),
            "--node-config", str(settings),
            "--isolation", "process",
            "--superexec-auth-secret-file", str(self.secret),
            "--host", "127.0.0.1",
            "--port", str(self.port),
            *(["--trusted-entities", str(self.reviewers)] if self.joining.reviewers else []),
        ]  # fmt: skip

    def executor_command(self) -> list[str]:
        return [
            sys.executable, "-m", "client.executor",
            "--insecure",
            "--runtime-api-address", f"127.0.0.1:{self.port}",
            "--superexec-auth-secret-file", str(self.secret),
        ]  # fmt: skip

    def __enter__(self) -> "Node":
        state = self.joining.state
        settings = self.write_files()
        for name, line in (("node", self.node_command(settings)), ("executor", self.executor_command())):
            self.children.append(Process(line, state / "logs" / f"{name}.log", self.environment, state / "work"))
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self.children):
            child.stop()

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Return when one of the two has ended, or the node lives on for nothing; `meanwhile` is called again and
        again."""
        while all(child.running for child in self.children) and not (self.deaf() or self.left()):
            meanwhile()
            time.sleep(0.2)

    @property
    def log(self) -> Path:
        return self.joining.state / "logs" / "node.log"

    def exit_code(self) -> int | None:
        """Flower's, where it gave one."""
        codes = re.findall(rb"Exit Code: (\d+)", self.log.read_bytes()[-4000:])
        return int(codes[-1]) if codes else None

    def deaf(self) -> bool:
        return DEAF in self.log.read_bytes()[-4000:]

    def left(self) -> bool:
        return LEFT.search(self.log.read_bytes()[-4000:]) is not None

    def signature_refused(self) -> bool:
        return self.exit_code() is None and not self.deaf() and UNASKED in self.log.read_bytes()[-4000:]

    def reason(self) -> str:
        """Why it ended, for an operator."""
        code = self.exit_code()
        if self.deaf():
            return "the line broke while a connection was made, and Flower's node does not get over that"
        if self.left():
            return "the coordinator failed to answer, and Flower's node does not get over that"
        if self.signature_refused():
            return WRONG_CLOCK
        if code in REASONS:
            return REASONS[code]
        return f"the node ended{f' with exit code {code}' if code else ''}; see {self.log}"


def join(
    joining: Joining, say: Callable[[str], None], why: Callable[[], str | None], attempts: int | None = None
) -> None:
    """Keep this site connected until interrupted: start the node, and start it again when it ends.

    Args:
        say: is told each change, one line an operator can read.
        why: says more exactly why the coordinator refused this site, where that can be told.
        attempts: give up after so many starts that did not last; for ever unless given.

    Raises:
        UserError: what `check` finds, or the last attempt failed.
    """
    name = check(joining)
    daily = DailyLook(lambda: certificates(joining))

    def warn() -> None:
        try:
            lines = daily.warnings()
        except UserError as refused:
            lines = [refused.what]
        for line in lines:
            say(f"{name}: {line}")

    tried, pause, cause = 0, 1.0, None
    with only_node(joining.state):
        while True:
            (joining.state / "logs" / "node.log").unlink(missing_ok=True)  # `reason` reads this attempt's alone
            say(f"{name}: connecting to {joining.coordinator}")
            started = time.monotonic()
            with Node(joining) as node:
                node.wait(warn)
                reason = node.reason()
            tried += 1
            if time.monotonic() - started > SETTLED_S:
                tried, pause = 0, 1.0
            if node.exit_code() == REFUSED or node.signature_refused():
                # The 1st, 2nd, 4th, 8th ... time: each question to the coordinator stands in the audit log.
                cause = why() if tried.bit_count() < 2 else cause
                reason = cause or reason
            if attempts is not None and tried >= attempts:
                raise UserError(f"{name} could not join: {reason}.", "Put that right, then join again.")
            say(f"{name}: {reason}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
