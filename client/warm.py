"""The parent of a site's app processes: it has imported the libraries, and forks one process for each message.

A process that is started afresh imports Flower, torch, transformers and TRL before it does anything: more seconds than
most messages are worth. Started by `client/executor.py` as a script of its own, never imported: it must know nothing of
`client` and `common`, since what a message runs is the bundle's code, which Flower unpacks, and not the code installed
here. For the same reason it holds no secret: of a task it is told one line on its standard input, which is the forked
process's own.

It forks only while it has one thread: a lock that another thread held would stay locked in the copy.

    warm.py LIBRARY ...

Exit code 3: these libraries start a thread here; 0: whoever started this process is gone.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Two libraries that would start threads at their import."""
THREADS = 3
REAP_S = 1.0
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
NAME = "flwr-clientapp"
"""What a forked process is called, as Flower's own is."""


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def import_all(libraries: list[str]) -> None:
    """The environment is as it was afterwards: an app may start programs of its own."""
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    for library in libraries:
        importlib.import_module(library)
    os.environ.clear()
    os.environ.update(before)


def tasks() -> Iterator[bytes]:
    """A line each, until standard input ends. Children that have ended are taken note of meanwhile."""
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], REAP_S)
        while has_ended():
            pass
        if not ready:
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, waiting = (waiting + data).split(b"\n")
        yield from lines


def has_ended() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def next_of_mine() -> bytes | None:
    """In a forked process its task; in the parent None, when there will be no more."""
    parent = os.getpid()
    for line in tasks():
        if os.fork() == 0:
            become_an_app(parent)
            return line
    return None


def become_an_app(parent: int) -> None:
    """End with the parent, however it ends, and hear no more of its tasks."""
    system = ctypes.CDLL(None)
    system.prctl(PR_SET_DUMPABLE, 1)
    system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    system.prctl(PR_SET_NAME, NAME.encode())
    if os.getppid() != parent:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = [NAME]


def main() -> None:
    # So that no app can look or write into it, and so into the apps that come after.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    import_all(sys.argv[1:])
    if threads() != 1:
        sys.exit(THREADS)
    gc.freeze()  # so that an app's collector leaves alone what it shares with this process
    line = next_of_mine()
    if line is None:
        return
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    task = json.loads(line)
    certificates = task["root_certificates"]
    run_clientapp(
        runtime_api_address=task["address"],
        token=task["token"],
        insecure=task["insecure"],
        certificates=Path(certificates).read_bytes() if certificates else None,
    )


if __name__ == "__main__":
    main()
