import os
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.processes import Process, flower_environment, installed_command

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed orphan may wait for init to collect it.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def eventually(condition: object, timeout_s: float = 10.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_children_of_a_child_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "parent.log"
    with Process([sys.executable, "-c", PARENT], log, dict(os.environ), tmp_path) as process:
        assert eventually(lambda: log.read_text().endswith("\n"))
        grandchild = int(log.read_text())
        assert process.running and alive(grandchild)
    assert not process.running
    assert eventually(lambda: not alive(grandchild))


def test_children_end_when_the_child_itself_has_crashed(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    with Process([sys.executable, "-c", PARENT], log, dict(os.environ), tmp_path) as process:
        assert eventually(lambda: log.read_text().endswith("\n"))
        process.child.kill()
        process.child.wait()
        grandchild = int(log.read_text())
        assert alive(grandchild)
    assert eventually(lambda: not alive(grandchild))


STARTER = """
import os, sys, time
from pathlib import Path
from common.processes import Process
process = Process([sys.executable, "-c", "import time; time.sleep(600)"], Path("c.log"), dict(os.environ), Path("."))
print(process.child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "starter.log"
    with Process([sys.executable, "-c", STARTER], log, dict(os.environ), tmp_path) as starter:
        assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
        child = int(log.read_text())
        assert alive(child)
        starter.child.kill()
        assert eventually(lambda: not alive(child))


def test_nothing_is_sent_or_installed(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert installed_command("flower-superexec", environment) == str(Path(sys.executable).parent / "flower-superexec")


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="flower-nothing is not installed"):
        installed_command("flower-nothing", flower_environment(tmp_path))
