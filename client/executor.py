"""A site's executor: Flower's, but for how an app's process comes to be.

Flower's own starts a Python for each message, which first imports for seconds. This one has a parent that has imported
already (`client/warm.py`) fork it: still a process for each message, which ends with it. Where that parent cannot be,
apps are started as Flower starts them.

    python -m client.executor ...      the options of `flower-superexec`
"""

import json
import subprocess
import sys
from pathlib import Path

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor

WARM = Path(__file__).with_name("warm.py")
THREADS = 3
"""Exit code of a parent in which libraries have started threads."""
LIBRARIES = ("flwr.supernode.runtime.run_clientapp", "pydantic", "cryptography.x509", "grpc", "scipy.stats",
             "sklearn.mixture", "sklearn.feature_selection")  # fmt: skip
"""Without polars, which starts threads when it is imported."""
TORCH = ("torch", "safetensors.torch", "transformers", "peft", "datasets", "trl.trainer.grpo_trainer")
GPUS = ("/dev/nvidiactl", "/dev/kfd")
"""Where one is, `TORCH` is left to the apps: what is forked from a process that has touched CUDA cannot use it."""


def libraries() -> tuple[str, ...]:
    return LIBRARIES if any(Path(gpu).exists() for gpu in GPUS) else (*LIBRARIES, *TORCH)


class WarmExecutor(SubprocessExecutor):
    def __init__(self) -> None:
        self.parent = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        # -P: its own folder, with names such as `policy`, is no place to import from.
        return subprocess.Popen([sys.executable, "-P", str(WARM), *libraries()], stdin=subprocess.PIPE, bufsize=0)

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """A site runs its own app and none of Flower's other kinds."""
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        task = {"address": spec.runtime_api_address, "token": spec.token, "insecure": spec.insecure,
                "root_certificates": spec.root_certificates_path}  # fmt: skip
        assert self.parent.stdin is not None
        try:
            self.parent.stdin.write(json.dumps(task).encode() + b"\n")
        except BrokenPipeError:
            if self.parent.wait() != THREADS:  # it was killed
                self.parent = self.start()
            return super().launch(spec)
        return LaunchResult.accepted()

    def close(self) -> None:
        self.parent.kill()


def main() -> None:
    # Flower has no option for an executor of one's own: this is the function that chooses among Flower's.
    run_superexec.get_executor = lambda *_, **__: WarmExecutor()  # type: ignore[attr-defined]
    flower_superexec()


if __name__ == "__main__":
    main()
