"""A federated run whose payloads take the bulk channel: the site's own app and a real service over TLS."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client.audit import first_broken
from common.address import Address, free_port
from common.keys import make_site_key
from common.study import Study
from server import bulk_service
from server.app import app as server_app
from server.bulk_settings import BulkSettings, write_bulk_settings
from server.certs import make_certificates
from server.coordinator import Coordinator, add_site
from server.round_store import Checkpoint, RoundStore
from server.run_folder import read_events
from server.simulation import COORDINATOR, RUN_ID, InProcessGrid, load_client_app, simulate_federated, site_contexts

NamedStudy = Callable[..., Study]
SITES = ("a", "b")


class Consortium:
    """A coordinator with a bulk channel; sites that were told of it."""

    def __init__(self, folder: Path, above_mb: float = 0.0) -> None:
        self.folder, self.port = folder, free_port()
        self.coordinator = Coordinator(folder / "coordinator")
        make_certificates(self.coordinator.folder / "certs", ["localhost"])
        for site in SITES:
            add_site(self.coordinator, site, make_site_key(folder / "keys" / site)[1])
        write_bulk_settings(self.coordinator, BulkSettings(port=self.port, above_mb=above_mb))

    def told(self, site: str) -> dict[str, str]:
        """What `wardround-site join --bulk` tells the site's app."""
        ca, key = self.coordinator.certificates.ca, self.folder / "keys" / site / "site.key"
        return {"bulk": f"localhost:{self.port}", "ca": str(ca), "key": str(key)}

    def run(self, study: Study, model: Path, with_channel: tuple[str, ...]) -> Checkpoint:
        """All rounds; sites that are not in `with_channel` know of no channel."""
        study_file, arm = self.folder / "study.toml", self.folder / "arm"
        study_file.write_text(study.to_toml())
        contexts = site_contexts(study, arm / "sites")
        for site, context in zip(sorted(study.sites.train), contexts.values(), strict=True):
            context.node_config |= self.told(site) if site in with_channel else {}
        values: dict[str, bool | float | int | str] = {
            "study": str(study_file),
            "run": "simulated",
            "model": str(model),
            "arm-dir": str(arm),
            "events": str(self.folder / "events.jsonl"),
            "coordinator": str(self.coordinator.folder),
            "played-keys": "",
        }
        server = bulk_service.start(self.coordinator, Address("127.0.0.1", self.port))
        try:
            grid = InProcessGrid(load_client_app(), contexts)
            server_app(grid, Context(RUN_ID, COORDINATOR, {}, RecordDict(), values))
        finally:
            server.stop(None).wait()
        return last_round(arm)

    def count(self, event: str, site: str) -> int:
        events = read_events(self.folder / "events.jsonl")
        return sum(line["event"] == event and line.get("site") == site for line in events)


def last_round(arm: Path) -> Checkpoint:
    checkpoint = RoundStore(arm).latest()
    assert checkpoint is not None
    return checkpoint


def simulated(study: Study, model: Path, folder: Path) -> Checkpoint:
    folder.mkdir()
    (folder / "study.toml").write_text(study.to_toml())
    simulate_federated(folder / "study.toml", study, "simulated", model, folder / "arm", folder / "events.jsonl")
    return last_round(folder / "arm")


@pytest.fixture
def moved_study(small_study: NamedStudy) -> Study:
    """Nothing travels inside another message."""
    return small_study(transfer={"inline_mb": 0.0, "shard_mb": 0.02})


def test_a_run_by_the_channel_gives_the_simulations_model_bit_for_bit(
    moved_study: Study, tiny_model: Path, tmp_path: Path
) -> None:
    consortium = Consortium(tmp_path / "consortium")
    here = consortium.run(moved_study, tiny_model, with_channel=SITES)
    expected = simulated(moved_study, tiny_model, tmp_path / "simulated")
    assert here.model.keys() == expected.model.keys() and here.round == 2
    assert all(torch.equal(here.model[name], value) for name, value in expected.model.items())
    for site in SITES:
        # Up once a round. Down: the base model, then after each round the difference to the model before.
        assert consortium.count("bulk_received", site) == 2 and consortium.count("bulk_sent", site) == 3
        log = consortium.folder / "arm" / "sites" / site / "audit.jsonl"
        uploads = [line for line in map(json.loads, log.read_text().splitlines()) if line["kind"] == "Uploaded"]
        assert first_broken(log) is None and len(uploads) == 2
        assert all("by the bulk channel" in line["detail"] for line in uploads)
    assert not list(consortium.coordinator.bulk.rglob("*.json")), "what was announced was taken back"


def test_a_site_without_the_channel_is_served_by_messages(moved_study: Study, tiny_model: Path, tmp_path: Path) -> None:
    consortium = Consortium(tmp_path / "consortium")
    here = consortium.run(moved_study, tiny_model, with_channel=("a",))
    expected = simulated(moved_study, tiny_model, tmp_path / "simulated")
    assert all(torch.equal(here.model[name], value) for name, value in expected.model.items())
    assert consortium.count("bulk_received", "a") == 2 and consortium.count("bulk_received", "b") == 0
    assert consortium.count("bulk_unavailable", "b") > 0


def test_small_payloads_do_not_take_the_channel(moved_study: Study, tiny_model: Path, tmp_path: Path) -> None:
    consortium = Consortium(tmp_path / "consortium", above_mb=1.0)
    assert consortium.run(moved_study, tiny_model, with_channel=SITES).round == 2
    assert consortium.count("bulk_received", "a") == consortium.count("bulk_sent", "a") == 0
