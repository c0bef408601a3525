"""A coordinator and two hospitals, each a process of its own, by the commands that their operators type."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks._consortium import SITES, Consortium, do, done, last_round, running_consortium, simulated
from benchmarks._faults import until
from common.address import Address, answers
from server.coordinator import site_states
from server.round_store import RoundStore
from server.run_folder import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_study: dict) -> Iterator[Consortium]:
    with running_consortium(tmp_path_factory.mktemp("consortium"), tiny_study, tiny_model) as made:
        yield made


def test_a_deployed_round_gives_the_simulations_model_bit_for_bit(consortium: Consortium, tmp_path: Path) -> None:
    line = ("run", consortium.study, "--coordinator", "coordinator", "--model", consortium.model)
    outcome = do("wardround", *line, folder=consortium.folder)
    logs = [path.read_text() for path in sorted(consortium.folder.rglob("*.log"))]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr + "\n".join(logs)
    (run,) = (consortium.folder / "runs").iterdir()
    events = [event["event"] for event in read_events(run / "events.jsonl")]
    assert events.count("round_finished") == 1 and events.count("update_received") == len(SITES)

    beats = [event for event in read_events(run / "events.jsonl") if event["event"] == "site_progress"]
    assert {beat["site"] for beat in beats} == set(SITES), "each site told its steps while it trained"

    deployed, expected = last_round(run / "seed-1" / "federated"), simulated(consortium, tmp_path, consortium.study)
    assert deployed.model.keys() == expected.model.keys()
    assert all(torch.equal(deployed.model[name], value) for name, value in expected.model.items())
    base = RoundStore(tmp_path / "arm").load(0).model
    assert any(not torch.equal(deployed.model[name], value) for name, value in base.items()), "nothing was learned"
    for site in SITES:
        listed = done("wardround-site", "audit", f"sites/{site}.toml", "--state", f"{site}/state",
                      folder=consortium.folder)  # fmt: skip
        assert "Trained" in listed


def test_two_rounds_in_8_bits_with_momentum_are_the_simulations_too(consortium: Consortium, tmp_path: Path) -> None:
    """What is kept from round to round lies at the sites (what the bits did not say) and here (the momentum)."""
    rounds = {"rounds": 2, "validation_patients": 0, "outer": {"name": "nesterov"}}
    study = consortium.other_study("in-8-bits", update={"steps": ["difference", "int8"]}, rounds=rounds)
    line = ("run", study, "--coordinator", "coordinator", "--model", consortium.model, "--runs", "more-runs")
    done("wardround", *line, folder=consortium.folder)
    (run,) = (consortium.folder / "more-runs").iterdir()
    deployed, expected = last_round(run / "seed-1" / "federated"), simulated(consortium, tmp_path, study)
    for there, here in ((deployed.model, expected.model), (deployed.outer, expected.outer)):
        assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
    assert deployed.outer and deployed.round == 2


def test_a_site_looks_before_it_joins(consortium: Consortium) -> None:
    """Against Flower's own SuperLink, which says the time in its answers' headers."""
    site, folder = SITES[0], consortium.folder
    told = done("wardround-site", "check", f"sites/{site}.toml", "--state", f"{site}/look",
                "--connect", f"localhost:{consortium.port}", "--bulk", f"localhost:{consortium.bulk_port}",
                "--ca", "coordinator/certs/ca.pem", "--key", f"{site}/site.key", folder=folder)  # fmt: skip
    assert all(f"ok    {what} " in told for what in ("coordinator", "clock", "registered", "line")), told


def test_unsigned_code_and_a_strangers_signature_are_refused(consortium: Consortium) -> None:
    """The sites name one reviewer. Their node says why at the site, and the run ends with a line that says it here."""
    folder, bundle = consortium.folder, consortium.coordinator.bundle
    line = ("run", consortium.study, "--coordinator", "coordinator", "--model", consortium.model, "--runs", "refused")
    kept = bundle.rename(folder / "kept-bundle")
    unsigned = do("wardround", *line, folder=folder)
    assert unsigned.returncode == 2 and "do not run this code" in unsigned.stderr, unsigned.stderr
    assert all("The FAB could not be verified" in consortium.node_log(site) for site in SITES)

    done("wardround", "bundle", "keygen", "mallory", folder=folder)
    done("wardround", "bundle", "build", "theirs.fab", folder=folder)
    done("wardround", "bundle", "sign", "theirs.fab", "--key", "mallory/reviewer.key", "--name", "alice", folder=folder)
    done("wardround", "bundle", "publish", "coordinator", "theirs.fab", folder=folder)
    forged = do("wardround", *line, folder=folder)
    assert all("could not verify the FAB" in consortium.node_log(site) for site in SITES)
    assert forged.returncode == 2 and "do not run this code" in forged.stderr, forged.stderr
    shutil.rmtree(bundle)
    kept.rename(bundle)


def test_a_finished_run_is_not_run_again(consortium: Consortium) -> None:
    (run,) = (consortium.folder / "runs").iterdir()
    done("wardround", "run", "--resume", run, "--coordinator", "coordinator", folder=consortium.folder)
    events = [event["event"] for event in read_events(run / "events.jsonl")]
    assert events.count("round_finished") == 1 and events.count("submitted") == 2


def test_a_site_whose_key_is_not_registered_is_refused(consortium: Consortium) -> None:
    done("wardround-site", "keygen", "stranger", folder=consortium.folder)
    (consortium.folder / "sites" / "stranger.toml").write_text(f'extends = "{SITES[0]}.toml"\nsite = "stranger"\n')
    line = consortium.join_line("stranger", Path("stranger/site.key"), "--attempts", "1")
    outcome = subprocess.run(line, cwd=consortium.folder, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 2
    assert "the coordinator refused this site" in outcome.stderr
    assert set(site_states(consortium.coordinator)) == set(SITES)


def test_a_study_with_an_absent_site_does_not_start(consortium: Consortium) -> None:
    text = consortium.study.read_text().replace(SITES[1], "synthetic-west")
    (consortium.folder / "absent.toml").write_text(text)
    listed = done("wardround", "sites", "list", "coordinator", folder=consortium.folder)
    assert listed.count("online") == len(SITES)
    outcome = do("wardround", "run", "absent.toml", "--model", consortium.model, folder=consortium.folder)
    assert outcome.returncode == 2 and "'synthetic-west' is not known, not online" in outcome.stderr


def test_a_revoked_site_is_cut_off_and_comes_back_with_another_key(consortium: Consortium) -> None:
    site, folder = SITES[1], consortium.folder
    done("wardround", "sites", "revoke", "coordinator", site, folder=folder)
    consortium.wait_for(f"{site}: its key was revoked", "serve")
    consortium.wait_for("its key is not registered as", site)
    assert site_states(consortium.coordinator) == {SITES[0]: "online", site: "revoked"}
    refused = do("wardround", "run", consortium.study, "--model", consortium.model, folder=folder)
    assert refused.returncode == 2 and f"Site '{site}' is revoked, not online" in refused.stderr

    (folder / site / "site.key").unlink()
    done("wardround-site", "keygen", site, folder=folder)
    done("wardround", "sites", "add", "coordinator", site, f"{site}/site.pub", folder=folder)
    consortium.wait_online()

    other = consortium.join_line(SITES[0], Path(SITES[0]) / "site.key", "--attempts", "1")
    other[other.index("--state") + 1] = str(folder / "another-machine")
    double = subprocess.run(other, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert double.returncode == 2 and "another node with it is connected" in double.stderr, double.stderr


def test_what_is_killed_is_started_again(consortium: Consortium) -> None:
    """kill -9 of a site's node, then of the SuperLink.

    The site is refused until the coordinator has given up its earlier connection (60 s), and keeps trying.
    """
    log = consortium.folder / "logs" / f"{SITES[0]}.log"
    before = log.read_text().count("connecting to")
    consortium.at_site(SITES[0], "flower-supernode").kill()
    consortium.at_coordinator("flower-superlink").kill()
    consortium.wait_for("the superlink ended and was started again", "serve")
    ca = consortium.coordinator.certificates.ca
    until(lambda: answers(Address("localhost", consortium.port), ca), "the SuperLink's answer")
    until(lambda: log.read_text().count("connecting to") > before, "the site's next try")
    until(lambda: "SuperNode ID:" in consortium.node_log(SITES[0]), "the site's connection")
    consortium.wait_online()
