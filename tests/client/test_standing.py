"""`wardround-site status`: each state as the site's own folder shows it."""

import json
from datetime import date
from functools import partial
from pathlib import Path

from client.approval import approve
from client.audit import Passage, append
from client.cli import main
from client.join import only_node
from client.progress import note
from tests.command import call

SHIPPED = Path(__file__).parents[2] / "site_configs" / "synthetic" / "synthetic-north.toml"
STUDY = "5" * 64


def test_each_state_is_told_from_the_folder_alone(tmp_path: Path) -> None:
    site, state = tmp_path / "site.toml", tmp_path / "state"
    site.write_text(f'extends = "{SHIPPED}"\n')
    look = partial(call, main, "status", site, "--state", state, cwd=tmp_path)

    def told() -> str:
        done = look()
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert told() == "synthetic-north: never joined from this folder\n"
    approve(site, STUDY)
    assert f"study {STUDY[:12]}: approved; not configured" in told()

    with only_node(state):
        assert "joining, not connected yet" in told()
        (state / "logs").mkdir()
        (state / "logs" / "node.log").write_text("INFO : SuperNode ID: 7\n")
        assert "joined; the coordinator has taken this site's key" in told()
    assert "not joined now" in told()

    folder = state / "studies" / STUDY
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"study": {"name": "sepsis"}}))
    assert f"study {STUDY[:12]} sepsis: approved; configured, no step taken" in told()
    note(folder / "runs" / "a-run", STUDY, "a-run", 3, 5, 15)
    assert "training in round 3 of a-run: step 5 of 15, 0 s ago" in told()
    note(folder / "runs" / "a-run", STUDY, "a-run", 3, 15, 15)
    assert "configured; trained in round 3 of a-run" in told()

    approve(site, STUDY, date(2001, 1, 1))
    assert "approval has ended" in told()


def test_health_is_a_connection_and_the_age_of_the_last_answered_round(tmp_path: Path) -> None:
    site, state = tmp_path / "site.toml", tmp_path / "state"
    site.write_text(f'extends = "{SHIPPED}"\n')
    node_log = state / "logs" / "node.log"

    def look(*options: str) -> tuple[int, str]:
        done = call(main, "status", site, "--state", state, "--healthy", *options, cwd=tmp_path)
        return done.returncode, done.stdout

    assert look() == (1, "synthetic-north: never joined from this folder; no round answered yet\n")
    node_log.parent.mkdir(parents=True)
    with only_node(state):
        node_log.write_text("INFO : SuperNode ID: 7\n")
        assert look()[0] == 0 and look("--within", "60")[0] == 1, "connected, and no round answered"
        append(state / "audit.jsonl", Passage("Trained", STUDY, "a-run", 3, 100, "0" * 64))
        append(state / "audit.jsonl", Passage("Evaluated", STUDY, "a-run", 3, 100, "0" * 64))
        code, told = look("--within", "60")
        assert code == 0 and "round 3 of a-run answered 0 s ago" in told
        node_log.write_text(node_log.read_text() + "WARNING : Connection attempt failed, retrying in 2.00 seconds\n")
        code, told = look()
        assert code == 1 and "the coordinator is not reached now" in told
        node_log.write_text(node_log.read_text() + "INFO : Connection successful after 8.21 seconds and 4 tries.\n")
        assert look()[0] == 0
    assert look()[0] == 1, "the node is not running any more"
    alone = call(main, "status", site, "--state", state, "--within", "60", cwd=tmp_path)
    assert alone.returncode == 2 and "--within is a limit of --healthy" in alone.stderr
