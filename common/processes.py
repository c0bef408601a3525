"""Child processes that never outlive us: each in a session of its own, ended as a whole group."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType, TracebackType

from common.errors import UserError

FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Nothing is installed while a run is going on: not at the coordinator, not at a site.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
PACE = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
"""Seconds between an executor's looks for a task; unless told it takes 1."""
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "MALLOC_TOP_PAD_": str(2**24),
}
"""glibc's allocator, from the start as it becomes by itself after freeing blocks of 32 MiB. Until then it gives each
message of the bulk channel back to the kernel, and half of the receiver's time is the kernel handing out pages anew."""

PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent dies, however that dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of every Flower process: our interpreter's commands first, `home` instead of ~/.flwr."""
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, os.environ.get("PATH", "")])
    return {**os.environ, **FLOWER_ENVIRONMENT, **PACE, **KEPT_MEMORY, "FLWR_HOME": str(home), "PATH": path}


class Process:
    """One child process, its children included, with its output appended to a log file.

    Use as a context manager, or call `stop`.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], folder: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
                # Asked to end and not killed, so that it can end its own children.
                preexec_fn=lambda: die_with(parent, signal.SIGTERM),
            )

    @property
    def running(self) -> bool:
        return self.child.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        """The exit status, or None when the process is still running after `timeout_s` seconds."""
        try:
            return self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = 15.0) -> None:
        """Ask the process to end, wait, then end whatever is left of its group."""
        if self.running:
            self.child.terminate()
            self.wait(grace_s)
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the whole group is gone
        self.child.wait()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def installed_command(name: str, environment: dict[str, str]) -> str:
    """Where a command lies on the environment's path.

    Raises:
        UserError: it is not there.
    """
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise UserError(f"The command {name} is not installed.", "Install wardround into one environment.")
    return found


def end_on_termination() -> None:
    """Let SIGTERM end this process the way Ctrl-C does, so that its children are ended too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
