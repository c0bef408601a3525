"""A machine whose power fails."""

import os
import signal

import psutil

from common.processes import Process


def kill_machine(command: Process) -> None:
    """SIGKILL of a command and all that it has started, none of which sees another die."""
    first = psutil.Process(command.child.pid)
    everything = [first, *first.children(recursive=True)]
    for process in everything:
        process.suspend()
    for process in everything:
        os.kill(process.pid, signal.SIGKILL)
    command.child.wait()
