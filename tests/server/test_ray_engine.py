"""The same study on Flower's simulation engine and in process."""

import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import torch

from common.errors import UserError
from common.study import Study, parse_study, read_study
from server.ray_engine import simulate_with_ray
from server.round_store import RoundStore
from server.simulation import simulate_federated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SITES = ("synthetic-north", "synthetic-south", "synthetic-west")
SHIPPED = Path(__file__).parent.parent.parent / "site_configs" / "synthetic"


def written(values: dict[str, Any], folder: Path) -> tuple[Path, Study]:
    study_file = folder / "study.toml"
    study_file.write_text(parse_study(values, "test").to_toml())
    return study_file, read_study(study_file)


ENGINES = {"flower-superlink", "flower-superexec", "flwr-simulation", "raylet", "gcs_server"}


def is_engine(process: psutil.Process) -> bool:
    """Whether it is one of Flower's SuperLink or of Ray, and still runs."""
    try:
        return not ENGINES.isdisjoint(Path(part).name for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_ray_gives_the_in_process_simulations_model(
    tmp_path: Path, tiny_model: Path, tiny_study: dict[str, Any]
) -> None:
    values = {
        **tiny_study,
        "sites": {"train": SITES, "public": ["synthetic-public"]},
        "rounds": {**tiny_study["rounds"], "rounds": 2},
        "simulation": {"site_configs": str(SHIPPED), "workers": 2},
    }
    study_file, study = written(values, tmp_path)
    during = set[psutil.Process]()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            during.update(filter(is_engine, psutil.Process().children(recursive=True)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        simulate_with_ray(study_file, study, "run", tiny_model, tmp_path / "ray", tmp_path / "ray.jsonl")
    finally:
        ended.set()
        looking.join()
    assert during and not any(map(is_engine, during)), "an engine outlived its run"
    simulate_federated(study_file, study, "run", tiny_model, tmp_path / "process", tmp_path / "process.jsonl")
    on_ray, in_process = (RoundStore(tmp_path / name).latest() for name in ("ray", "process"))
    assert on_ray is not None and in_process is not None and on_ray.round == in_process.round == 2
    assert on_ray.model.keys() == in_process.model.keys()
    assert all(torch.equal(on_ray.model[name], value) for name, value in in_process.model.items())
    assert on_ray.notes["sites"] == in_process.notes["sites"]


def test_a_failed_run_says_why(tmp_path: Path, tiny_model: Path, tiny_study: dict[str, Any]) -> None:
    """One site's table is gone: the ServerApp's sentence comes through the engine."""
    features = [{"column": column, "name": column, "section": "S", "kind": "number"} for column in ("x", "y")]
    table = {"source": "csv", "path": "gone.csv"}
    values = {"site": "somewhere", "patient": "id", "table": table, "features": features}
    (tmp_path / "somewhere.toml").write_text(tomli_w.dumps(values))
    study_values = {
        **tiny_study,
        "sites": {"train": ["somewhere"], "public": ["synthetic-public"]},
        "simulation": {"site_configs": str(tmp_path), "workers": 1},
    }
    study_file, study = written(study_values, tmp_path)
    with pytest.raises(UserError, match="Site 'somewhere' refuses the study"):
        simulate_with_ray(study_file, study, "run", tiny_model, tmp_path / "arm", tmp_path / "events.jsonl")
    assert "gone.csv" in (tmp_path / "arm" / "sites" / "somewhere" / "errors.log").read_text()
