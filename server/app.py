"""The coordinator's Flower ServerApp: one study, all its rounds.

`run_config` keys (set by whoever starts the run, see `wardround run` and `server/simulation.py`):

| key | meaning |
|---|---|
| `study` | path of the resolved study file |
| `run` | name of the run; sites keep their state under it |
| `model` | folder of the base model |
| `arm-dir` | folder of the checkpoints |
| `events` | path of the event log |
| `coordinator` | the coordinator's folder: its bulk channel and the sites' heartbeats; empty where there is none |
| `played-keys` | folder of the sites' NAME.pub, where a simulation plays them under a secure sum; else empty |
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.keys import read_public_key
from common.study import read_study
from server.bulk_route import bulk_route
from server.coordinator import Coordinator, revoked_sites
from server.heartbeats import listening
from server.mailbox import nobody
from server.round_store import RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    study = read_study(Path(str(config["study"])))
    log = EventLog(Path(str(config["events"])), arm="federated", seed=study.seed)
    store = RoundStore(Path(str(config["arm-dir"])))
    run, folder = str(config["run"]), str(config["coordinator"])
    bulk = bulk_route(folder, log)
    keys = str(config["played-keys"])
    played = {site: read_public_key(Path(keys) / f"{site}.pub") for site in study.sites.train} if keys else None
    coordinator = Coordinator(Path(folder)) if folder else None
    heard = listening(coordinator.progress, run, log) if coordinator else nullcontext()
    revoked = partial(revoked_sites, coordinator) if coordinator else nobody
    with store.alone(), heard:
        run_rounds(grid, study, run, Path(str(config["model"])), store, log, bulk, played, revoked)
