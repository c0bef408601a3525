"""One codebook for all sites: agreed by messages before the first round, and the same in every arm."""

import json
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest
import tomli_w
from flwr.app import Message

from common.errors import UserError
from common.questions.codebook import Codebook, fit_codebook
from common.questions.codebook_file import read_codebook, to_toml
from common.registry.registry import concat_registries
from common.study import Study, read_study
from common.tasks.site_questions import own_codebook, training_rows
from server.cli import main
from server.codebooks import common_codebook
from server.frames import build_frames, registries
from server.mailbox import Mailbox
from server.round_store import RoundStore
from server.run_folder import EventLog, create_run, read_events, write_text
from server.simulation import (
    InProcessGrid,
    load_client_app,
    simulate_federated,
    simulated_codebook,
    site_contexts,
)
from server.sites import configure_sites, name_sites, study_content
from tests.command import call

FEDERATED = {"ask": ["category"], "per_patient": 2, "codebook": "federated"}


@pytest.fixture
def open_sites(small_sites: Path, tmp_path: Path) -> dict[str, str]:
    """The small sites, which hold no count back: a `[simulation]` table."""
    folder = tmp_path / "open"
    folder.mkdir()
    for path in small_sites.glob("*.toml"):
        (folder / path.name).write_text(path.read_text() + "\n[client.policy]\nminimum_patients = 1\n")
    return {"site_configs": str(folder), "workers": 1}  # type: ignore[dict-item]


def at_site(arm: Path, site: str, study: Study, name: str) -> Path:
    return arm / "sites" / site / "studies" / study.hash / name


def test_a_federated_codebook_is_that_of_the_pooled_training_patients(
    small_study: Callable[..., Study], open_sites: dict[str, str], tmp_path: Path
) -> None:
    study = small_study(questions=FEDERATED, simulation=open_sites)
    found = simulated_codebook(study, tmp_path / "arm", EventLog(tmp_path / "events.jsonl"))
    sites = registries(study, study.sites.train)
    pooled = concat_registries(sites, "pooled")
    rows = pl.concat([training_rows(registry, study).select(pooled.frame.columns) for registry in sites])
    assert found == fit_codebook(rows, pooled.features, study.questions, seed=1)


def test_every_arm_asks_with_the_codebook_that_the_sites_agreed_on(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study(questions=FEDERATED)
    arm, log = tmp_path / "federated", EventLog(tmp_path / "events.jsonl")
    codebook = simulated_codebook(study, arm, log)
    assert codebook is not None
    frames = build_frames(study, tmp_path / "questions", codebook)
    write_text(tmp_path / "study.toml", study.to_toml())
    simulate_federated(tmp_path / "study.toml", study, "run", tiny_model, arm, tmp_path / "events.jsonl")
    assert RoundStore(arm).finished() == [0, 1, 2]
    for site in study.sites.train:
        assert read_codebook(at_site(arm, site, study, "codebook.toml")) == codebook
        assert pl.read_parquet(at_site(arm, site, study, "train.parquet")).equals(frames.train(site))
        assert frames.codebook(site) == frames.codebook("elsewhere") == codebook
    # Agreed once, and the counts of single sites are gone.
    assert [e["what"] for e in read_events(tmp_path / "events.jsonl") if e["event"] == "counts_received"] == [
        "values", "values", "pairs", "pairs"]  # fmt: skip
    assert not (arm / "counts").exists()
    audit = [json.loads(line) for line in (arm / "sites" / "a" / "audit.jsonl").read_text().splitlines()]
    details = {entry["kind"]: entry["detail"] for entry in audit}
    assert details["Configured"] == f"codebook {codebook.hash}"
    held, _, total = details["Counted"].removesuffix(" counts held back").partition(" of ")
    assert 0 < int(held) < int(total)


class Breaking(InProcessGrid):
    """The coordinator ends when it takes its n-th reply with counts."""

    left = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if not reply.has_error() and "cells" in reply.content:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
        return replies


@pytest.mark.parametrize("killed_at", [2, 4])
def test_a_coordinator_that_ends_amid_the_counts_goes_on(
    small_study: Callable[..., Study], tmp_path: Path, killed_at: int
) -> None:
    study = small_study(questions=FEDERATED)
    whole = simulated_codebook(study, tmp_path / "whole", EventLog(tmp_path / "whole.jsonl"))
    arm, log = tmp_path / "arm", EventLog(tmp_path / "events.jsonl")
    grid = Breaking(load_client_app(), site_contexts(study, arm / "sites"))
    grid.left = killed_at
    with pytest.raises(KeyboardInterrupt):
        common_codebook(Mailbox(grid, name_sites(grid, study, log), log), study, arm)
    assert not (arm / "codebook.toml").exists()
    assert simulated_codebook(study, arm, log) == whole
    asked = [e for e in read_events(tmp_path / "events.jsonl") if e["event"] == "counts_received"]
    assert len(asked) == 4, "a site whose counts lay there was asked again"


def test_a_given_codebook_is_what_everybody_asks_with(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    own = small_study()
    sites = registries(own, ("elsewhere",))
    public = own_codebook(sites[0], own)
    write_text(tmp_path / "public.toml", to_toml(public))
    values = own.model_dump(mode="json", exclude_none=True)
    values["questions"]["codebook"] = "public.toml"
    write_text(tmp_path / "small.toml", tomli_w.dumps(values))
    study = read_study(tmp_path / "small.toml")
    assert study.questions.codebook_sha256 == public.hash and study.hash != own.hash
    run = create_run(tmp_path / "runs", study, [1], ["federated"], 0.0)
    (tmp_path / "public.toml").unlink()
    again = run.study()
    assert again.hash == study.hash, "where the file lies is no part of what sites approve"
    arm = run.arm(1, "federated")
    simulate_federated(run.path / "study.toml", again, "run", tiny_model, arm, run.events)
    assert RoundStore(arm).finished() == [0, 1, 2]
    assert read_codebook(at_site(arm, "b", again, "codebook.toml")) == public


def test_sites_refuse_a_codebook_that_the_study_does_not_name(
    small_study: Callable[..., Study], tiny_model: Path, tmp_path: Path
) -> None:
    study = small_study(questions={**FEDERATED, "codebook": "file", "codebook_sha256": "0" * 64})
    other = own_codebook(registries(study, ("a",))[0], study)
    grid, log = InProcessGrid(load_client_app(), site_contexts(study, tmp_path)), EventLog(tmp_path / "events.jsonl")
    box = Mailbox(grid, name_sites(grid, study, log), log)
    with pytest.raises(UserError, match="the codebook in the message is not whole, or not the one of this study"):
        configure_sites(box, study, study_content(study, tiny_model, other))


def test_a_site_that_refuses_its_counts_is_named(small_study: Callable[..., Study], tmp_path: Path) -> None:
    study = small_study(questions={**FEDERATED, "test_fraction": 0.95})
    with pytest.raises(UserError, match="Site 'a' sends no counts for the common codebook: too few patients"):
        simulated_codebook(study, tmp_path / "arm", EventLog(tmp_path / "events.jsonl"))


def test_the_run_folders_codebook_says_its_hash(small_study: Callable[..., Study], tmp_path: Path) -> None:
    study = small_study(questions=FEDERATED)
    codebook = simulated_codebook(study, tmp_path / "arm", EventLog(tmp_path / "events.jsonl"))
    values = tomllib.loads((tmp_path / "arm" / "codebook.toml").read_text())
    assert isinstance(codebook, Codebook) and values["sha256"] == codebook.hash


def test_two_codebooks_are_compared_on_the_command_line(small_study: Callable[..., Study], tmp_path: Path) -> None:
    study = small_study()
    for registry in registries(study, study.sites.train):
        write_text(tmp_path / f"{registry.site}.toml", to_toml(own_codebook(registry, study)))
    apart, same = (call(main, "codebook-diff", tmp_path / "a.toml", tmp_path / f"{site}.toml") for site in "ba")
    assert (apart.returncode, same.returncode) == (1, 0)
    assert "age: counts: " in apart.stdout and same.stdout == "no difference\n"
