"""A site's training job under a limit of memory, where there is one: `python tight_job.py FOLDER LIMIT`.

LIMIT is a file that holds how many bytes the job may take beyond what its imports took; without it there is no limit.
"""

import resource
import sys
from pathlib import Path

from common.grpo.job import main


def mapped() -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    folder, limit = map(Path, sys.argv[1:])
    if limit.exists():
        most = mapped() + int(limit.read_text())
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    sys.exit(main(folder))
