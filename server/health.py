"""Health of a coordinator: whether it answers, and whether rounds are finished, by the standard gRPC health protocol.

    COORDINATOR/under-way/RUN.json    a run that `wardround run` leads: its folder, its deadline, since when

`grpc.health.v1.Health/Check` is answered on the bulk channel's port. What is said of the rounds is read from the disk
at each call: no process of the run is asked, so one that hangs cannot answer for its rounds. There is no `Watch`: it
would hold one of the channel's threads for ever.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import parse_address
from common.errors import UserError
from common.strict import read_toml
from server.coordinator import CONNECTION, Coordinator
from server.run_folder import RunFolder, read_json, write_json

ROUNDS = "wardround.Rounds"
"""The service name of the second question: are rounds finished in time?"""
PROCESS = ""
"""Of the first: does the coordinator's channel answer?"""
PHASES = 2
"""A round waits for its sites twice, `rounds.deadline_s` at most each time: for updates and for figures."""
ANSWER_S = 10.0


@dataclass(frozen=True)
class UnderWay:
    """A run, and when a round of it was finished last; when it was begun or resumed, where that is later."""

    run: str
    last: float
    limit_s: float

    @property
    def late(self) -> bool:
        return time.time() - self.last > self.limit_s


@contextmanager
def leading(coordinator: Coordinator, run: RunFolder) -> Iterator[None]:
    """Note that the run is under way until the block ends. The note of a command that was killed stays, so that its run
    counts as late until it is resumed."""
    study = run.study()
    note = coordinator.under_way / f"{run.path.name}.json"
    values = {"arm": str(run.arm(study.seed, "federated")), "limit_s": PHASES * study.rounds.deadline_s}
    write_json(note, {**values, "since": time.time()})
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def runs_under_way(coordinator: Coordinator, limit_s: float | None = None) -> Iterator[UnderWay]:
    """Args: `limit_s`: how old the last finished round may be; twice the study's `deadline_s` unless given."""
    for note in sorted(coordinator.under_way.glob("*.json")):
        try:
            values = read_json(note)
        except FileNotFoundError:  # its run ended meanwhile
            continue
        finished = [path.stat().st_mtime for path in Path(values["arm"]).glob("round-*.json")]
        yield UnderWay(note.stem, max([values["since"], *finished]), limit_s or values["limit_s"])


class Health(health_pb2_grpc.HealthServicer):
    def __init__(self, coordinator: Coordinator, limit_s: float | None = None) -> None:
        self.coordinator, self.limit_s = coordinator, limit_s

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in (PROCESS, ROUNDS):
            context.abort(grpc.StatusCode.NOT_FOUND, f"ask for {ROUNDS}, or for no service by name")
        rounds = request.service == ROUNDS
        late = rounds and any(run.late for run in runs_under_way(self.coordinator, self.limit_s))
        answer = health_pb2.HealthCheckResponse
        return answer(status=answer.NOT_SERVING if late else answer.SERVING)


def ask(coordinator: Coordinator, port: int, service: str) -> bool:
    """Whether the coordinator that runs on this machine says that it is serving.

    Raises:
        UserError: nothing answers.
    """
    # Where the folder says that its SuperLink listens, there the channel listens too, on a port of its own.
    settings = read_toml(coordinator.flower / "config.toml")
    host = parse_address(settings["superlink"][CONNECTION]["address"]).host
    credentials = grpc.ssl_channel_credentials(coordinator.certificates.ca.read_bytes())
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.secure_channel(where, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=ANSWER_S)
        except grpc.RpcError as error:
            raise UserError(
                f"{where}: nothing answers for health ({error.code().name}).",
                f"Is `wardround serve {coordinator.folder} --bulk-port {port}` running?",
            ) from None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
