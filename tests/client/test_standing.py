"""`wardround-site status`: each state as the site's own folder shows it."""

import json
from datetime import date
from functools import partial
from pathlib import Path

from client.approval import approve
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
