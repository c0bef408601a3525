"""`wardround-site`, as a hospital types it: what is printed, and how mistakes are told."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w
from flwr.app import Context, RecordDict

from client.cli import main
from client.join import Joining, Node, check, only_node
from client.site import BulkEnd, site_of
from common.address import Address, free_port
from common.errors import UserError
from common.keys import make_site_key
from common.questions.codebook_file import read_codebook
from common.study import parse_study
from server.certs import make_certificates
from tests.command import Done, call

SHIPPED = Path(__file__).parent.parent.parent / "site_configs" / "synthetic"
Command = Callable[..., Done]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(f'extends = "{SHIPPED / "synthetic-north.toml"}"\n')
    return path


@pytest.fixture
def study(tmp_path: Path, tiny_study: dict[str, Any]) -> Path:
    path = tmp_path / "study.toml"
    values = {**tiny_study, "sites": {"train": ["synthetic-north"], "public": ["synthetic-public"]}}
    path.write_text(parse_study(values, "test").to_toml())
    return path


@pytest.fixture
def run(tmp_path: Path) -> Command:
    return partial(call, main, cwd=tmp_path)


def test_the_installed_command(run: Command, tmp_path: Path) -> None:
    assert run("keygen", "keys").returncode == 0
    line = [str(Path(sys.executable).parent / "wardround-site"), "keygen", "keys"]
    again = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 2 and "Traceback" not in again.stderr


def test_check_counts_and_names_what_is_left_out(run: Command, tmp_path: Path, study: Path) -> None:
    features = [
        {"column": column, "name": column, "section": "S", "kind": "number"} for column in ("age", "weight", "constant")
    ]
    rows = [f"p{n},{20 + n},{50 + n % 7},1" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["id,age,weight,constant", *rows]))
    values = {
        "site": "synthetic-north",
        "patient": "id",
        "never": ["name"],
        "table": {"source": "csv", "path": "t.csv"},
        "features": features,
    }
    (tmp_path / "own.toml").write_text(tomli_w.dumps(values))
    done = run("check", "own.toml", "--study", study)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line.split()[-1] for line in done.stdout.splitlines() if line.strip()}
    assert lines["patients"] == "60" and lines["features in use"] == "2" and lines["values to ask about"] == "120"
    assert int(lines["training questions"]) > 0 and lines["study approved here"] == "no"
    assert "left out: constant" in done.stdout and "never used: name" in done.stdout


def test_questions_are_written_to_a_folder(run: Command, site: Path, study: Path, tmp_path: Path) -> None:
    done = run("questions", site, "--study", study, "--out", tmp_path / "questions")
    written = {path.stem: pl.read_parquet(path).height for path in (tmp_path / "questions").iterdir()}
    assert written.keys() == {"train", "validation", "test"}
    for name, count in written.items():
        assert re.search(rf"^{name} +{count}$", done.stdout, re.MULTILINE) and count > 0


def test_questions_are_shown_with_their_answers(run: Command, site: Path, study: Path) -> None:
    done = run("questions", site, "--study", study, "-n", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("answer: ") == 2 and "[MASK]" in done.stdout


def test_every_declared_task_is_counted_and_a_summary_keeps_small_counts_back(run: Command, tmp_path: Path) -> None:
    died = ["yes" if n % 7 == 0 and n < 50 else "no" if n < 5 else "" for n in range(60)]
    rows = [f"p{n},{20 + n},{'fm'[n % 2]},{died[n]}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["id,age,sex,died", *rows]))
    late = {"known": "outcome", "ask": False}
    kinds = {"age": {"kind": "number"}, "sex": {"kind": "category"}, "died": {"kind": "category", **late}}
    values = {
        "site": "own",
        "patient": "id",
        "table": {"source": "csv", "path": "t.csv"},
        "features": [{"column": c, "name": c, "section": "S", **more} for c, more in kinds.items()],
        "outcomes": [{"column": "died", "question": "Will the patient die?"}],
        "client": {"policy": {"minimum_patients": 20}},
    }
    (tmp_path / "own.toml").write_text(tomli_w.dumps(values))
    done = run("check", "own.toml", "--share", "summary.txt", "--state", "state")
    assert done.returncode == 0, done.stderr
    for said in ("masked_value", "95 % up to", "over grpo.max_prompt_tokens"):
        assert said in done.stdout
    assert done.stdout.count("answer: ") == 2
    summary = (tmp_path / "summary.txt").read_text()
    assert "patients: 60" in summary and "task: masked_value: " in summary and "feature: age: 60 patients" in summary
    assert "task: withheld, fewer than 20 patients: outcome" in summary
    assert "outcome: withheld, fewer than 20 patients: 2 answers" in summary and "Will the patient die?" not in summary
    (line,) = (tmp_path / "state" / "audit.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["kind"] == "Summarised" and entry["detail"] == "3 of 6 counts held back"
    assert entry["sha256"] == hashlib.sha256(summary.encode()).hexdigest()
    shown = run("questions", "own.toml", "-n", 1).stdout
    assert shown.count("answer: ") == 2 and "Will the patient die?" in shown


def test_an_approval_is_asked_for_and_written(run: Command, site: Path, study: Path) -> None:
    assert run("approve", study, "--site", site).returncode == 1  # nobody said yes
    assert "approved" not in site.read_text()
    assert run("approve", study, "--site", site, "--yes").returncode == 0
    assert "study approved here   yes" in run("check", site, "--study", study).stdout


def test_a_mistake_is_a_sentence_with_its_remedy(run: Command, tmp_path: Path, site: Path) -> None:
    site.write_text(site.read_text() + "colour = 1\n")
    for arguments in (("check", site), ("audit", site), ("check", "absent.toml")):
        done = run(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_is_named(run: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/keys"):
        done = run("keygen", place)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{place}: it cannot be used") and len(done.stderr.splitlines()) == 2


@pytest.fixture
def joining(site: Path, tmp_path: Path) -> Joining:
    private, _ = make_site_key(tmp_path / "keys")
    ca = make_certificates(tmp_path / "certs", []).ca
    return Joining(site, tmp_path / "state", Address("127.0.0.1", free_port()), ca, private)


def test_a_site_that_has_all_it_needs(joining: Joining) -> None:
    assert check(joining) == "synthetic-north"


def test_a_key_that_others_can_read_is_refused(joining: Joining) -> None:
    joining.key.chmod(0o640)
    with pytest.raises(UserError, match="others can read this key"):
        check(joining)


def test_the_app_is_told_how_to_reach_the_bulk_channel_where_there_is_one(joining: Joining) -> None:
    assert "bulk" not in tomllib.loads(Node(joining).write_files().read_text())
    address = Address("coordinator.example.org", 8001)
    told = tomllib.loads(Node(replace(joining, bulk=address)).write_files().read_text())
    site = site_of(Context(1, 1, told, RecordDict(), {}))
    assert site.bulk == BulkEnd(address, joining.ca, joining.key)


def test_a_missing_file_is_named(joining: Joining) -> None:
    joining.ca.unlink()
    with pytest.raises(UserError, match="the coordinator's CA certificate is not there"):
        check(joining)


def test_a_folder_has_one_node(joining: Joining) -> None:
    with only_node(joining.state):
        with pytest.raises(UserError, match="has joined already"), only_node(joining.state):
            pass
    with only_node(joining.state):
        pass  # it is free again


def test_leaks_names_the_fidelity_that_leaks(run: Command, site: Path) -> None:
    done = run("leaks", site)
    assert done.returncode == 0, done.stderr
    verdicts = [line.split()[:4] for line in done.stdout.splitlines()]
    assert verdicts == [
        ["strict", "category", "leaks:", "no"],
        ["strict", "number", "leaks:", "no"],
        ["paper", "category", "leaks:", "no"],
        ["paper", "number", "leaks:", "yes"],
    ]


def test_leaks_at_a_site_with_few_patients_is_a_sentence(run: Command, tmp_path: Path) -> None:
    few = tmp_path / "few.toml"
    few.write_text(f'extends = "{SHIPPED / "synthetic-north.toml"}"\n[synthetic]\npatients = 40\n')
    done = run("leaks", few)
    assert done.returncode == 2
    assert "too few to look for leaks" in done.stderr and "Traceback" not in done.stderr


def test_a_sites_own_codebook_serves_a_study_until_it_is_changed(
    run: Command, site: Path, study: Path, tmp_path: Path
) -> None:
    place = tmp_path / "own.toml"
    done = run("codebook", site, "--study", study, "--out", place)
    assert done.returncode == 0 and read_codebook(place).hash in done.stdout
    place.write_text(place.read_text().replace("maskable = true", "maskable = false", 1))
    study.write_text(study.read_text().replace('codebook = "site"', 'codebook = "own.toml"'))
    refused = run("questions", site, "--study", study)
    assert refused.returncode == 2 and "changed since it was written" in refused.stderr
