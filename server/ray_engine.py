"""`--engine ray`: the same apps on Flower's simulation engine, with sites side by side.

A SuperLink in simulation mode is started on loopback for the run and ended with it (Flower's own local one
would outlive the command). The engine tells a site's app only which of so many it is, so the app in the
bundle is `site_app` below, which gives it its hospital's configuration first.
"""

import tempfile
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.address import Address, free_port
from common.errors import UserError
from common.study import Study, read_study
from server.certs import make_certificates
from server.coordinator import Coordinator, prepare
from server.deployed import FINISHED, start, status
from server.serve import Serving
from server.simulation import load_client_app, played_keys, site_contexts

SITE_APP = "server.ray_engine:site_app"
POLL_S = 1.0


class NumberedSite(ClientApp):
    """The site's app, called as the site whose number the engine gives."""

    def __call__(self, message: Message, context: Context) -> Message:
        study = read_study(Path(str(context.run_config["study"])))
        states = Path(str(context.run_config["arm-dir"])) / "sites"
        sites = [played.node_config for _, played in sorted(site_contexts(study, states).items())]
        node_config = sites[int(context.node_config["partition-id"])]
        played = Context(context.run_id, context.node_id, node_config, context.state, context.run_config)
        return load_client_app()(message, played)


site_app = NumberedSite()


def simulate_with_ray(study_file: Path, study: Study, run: str, model: Path, arm: Path, events: Path) -> None:
    """Run the coordinator's app against the sites' app on Ray, from the last finished round on.

    Arguments are those of `server.simulation.simulate_federated`.

    Raises:
        UserError: the run failed; with the ServerApp's own sentence.
    """
    values = {"study": str(study_file), "run": run, "model": str(model), "arm-dir": str(arm), "events": str(events),
              "played-keys": played_keys(study, arm / "sites")}  # fmt: skip
    resources = f"num-supernodes={len(study.sites.train)} client-resources-num-cpus=1"
    if study.simulation.workers is not None:
        resources += f" init-args-num-cpus={study.simulation.workers}"
    with tempfile.TemporaryDirectory(prefix="wardround-ray-") as folder:
        coordinator, address = Coordinator(Path(folder)), Address("127.0.0.1", free_port())
        make_certificates(coordinator.folder / "certs", [])
        prepare(coordinator, address)
        with Serving(coordinator, address, simulation=True):
            flower_run = start(coordinator, values, "--federation-config", resources, client_app=SITE_APP)
            while not (word := status(coordinator, flower_run))[0].startswith("finished"):
                time.sleep(POLL_S)
            if word[0] != FINISHED:
                log = (coordinator.logs / "executor.log").read_text(errors="replace")
                (arm / "ray.log").write_text(log)
                raise UserError(f"The run on Ray failed: {word[1]}", f"See {arm / 'ray.log'}.")
