"""A registry that changes while a run is under way: the run keeps the questions that it began with, and the site is
told."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from flwr.app import Message

from client.same_registry import said_of
from client.site import read_site
from client.standing import work
from common.registry.config import Synthetic
from common.registry.synthetic import generate
from common.study import Study
from server.round_store import Checkpoint, RoundStore
from server.rounds import run_rounds
from server.run_folder import EventLog
from server.simulation import InProcessGrid, load_client_app, site_contexts

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"
SITES = ("a", "b")


class Stopped(Exception):
    """What stands for the end of the coordinator's process."""


class StoppedGrid(InProcessGrid):
    """Ends when a site is to train in round 2."""

    def deliver(self, message: Message) -> Message:
        if (message.metadata.message_type, message.metadata.group_id) == ("train", "2"):
            raise Stopped
        return super().deliver(message)


@pytest.fixture
def study(small_study: Callable[..., Study], tmp_path: Path) -> Study:
    """Of two hospitals whose registries are CSV files."""
    for seed, site in enumerate(SITES, start=1):
        generate(Synthetic(patients=60, seed=seed), site).write_csv(tmp_path / f"{site}.csv")
        table = f'[table]\nsource = "csv"\npath = "{site}.csv"\n'
        (tmp_path / f"{site}.toml").write_text(f'extends = "{REGISTRY}"\nsite = "{site}"\n{table}')
    rounds = {"rounds": 2, "local_steps": 2, "validation_patients": 0, "deadline_s": 60.0}
    return small_study(rounds=rounds, simulation={"site_configs": str(tmp_path), "workers": 1})


def go(grid: type[InProcessGrid], study: Study, model: Path, arm: Path) -> Checkpoint:
    """The coordinator and the sites, as processes that have just started."""
    app = load_client_app()
    importlib.import_module("client.training").in_memory.clear()
    store, log = RoundStore(arm), EventLog(arm / "events.jsonl", arm="federated", seed=1)
    return run_rounds(grid(app, site_contexts(study, arm / "sites")), study, "run", model, store, log)


def told(folder: Path) -> list[str]:
    """What the site's audit log says of each time that the study was configured."""
    passages = map(json.loads, (folder / "audit.jsonl").read_text().splitlines())
    return [passage["detail"] for passage in passages if passage["kind"] == "Configured"]


def test_a_run_goes_on_with_the_questions_that_it_began_with(study: Study, tiny_model: Path, tmp_path: Path) -> None:
    """Between two rounds one hospital's export is replaced and the other's is away."""
    whole, arm = go(InProcessGrid, study, tiny_model, tmp_path / "whole"), tmp_path / "stopped"
    with pytest.raises(Stopped):
        go(StoppedGrid, study, tiny_model, arm)
    first, second = (arm / "sites" / site for site in SITES)
    kept = first / "studies" / study.hash
    asked = pl.read_parquet(kept / "train.parquet")
    exported = pl.read_csv(tmp_path / "a.csv", infer_schema=False)
    exported[10:].with_columns(age=pl.lit("99")).write_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").rename(tmp_path / "b-away.csv")

    resumed = go(InProcessGrid, study, tiny_model, arm)
    assert resumed.round == 2 and all(torch.equal(resumed.model[name], value) for name, value in whole.model.items())
    assert asked.equals(pl.read_parquet(kept / "train.parquet"))
    assert ["the registry is no longer that of" in detail for detail in told(first)] == [False, True]
    assert ["the registry cannot be read" in detail for detail in told(second)] == [False, True]
    site = read_site(tmp_path / "a.toml", first)
    assert said_of(kept) in work(site, study.hash) and "no longer" in said_of(kept)

    exported.reverse().write_csv(tmp_path / "a.csv")
    (tmp_path / "b-away.csv").rename(tmp_path / "b.csv")
    (arm / "round-0002.json").unlink()
    go(InProcessGrid, study, tiny_model, arm)
    assert [said_of(folder / "studies" / study.hash) for folder in (first, second)] == ["", ""]
    assert told(first)[-1] == told(first)[0]


def test_a_changed_declaration_is_a_changed_registry(study: Study, tiny_model: Path, tmp_path: Path) -> None:
    go(InProcessGrid, study, tiny_model, tmp_path / "arm")
    with (tmp_path / "a.toml").open("a") as file:
        file.write('[clean.focus]\nignore_case = true\n')
    (tmp_path / "arm" / "round-0002.json").unlink()
    go(InProcessGrid, study, tiny_model, tmp_path / "arm")
    assert "no longer" in told(tmp_path / "arm" / "sites" / "a")[-1]
    assert "no longer" not in told(tmp_path / "arm" / "sites" / "b")[-1]
