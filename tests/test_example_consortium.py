"""docs/examples/consortium.sh: every command of a first round, by three hospitals with keys of their own."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from common.address import free_port

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "studies" / "consortium.toml"


def values_of(study: str) -> dict:
    return tomllib.loads((ROOT / "studies" / study).read_text())


def test_the_study_is_the_demos_with_three_hospitals_and_fewer_rounds() -> None:
    demo, consortium = values_of("demo.toml"), values_of("consortium.toml")
    assert consortium["sites"]["train"] == demo["sites"]["train"][:3]
    for values in (demo, consortium):
        del values["name"], values["title"], values["sites"]["train"], values["rounds"]["rounds"]
    assert demo == consortium


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_hospitals_model_is_the_simulations(tmp_path: Path) -> None:
    values = values_of("consortium.toml")
    values["model"]["builtin"] = {"hidden": 32, "layers": 1, "warmup_steps": 150, "warmup_batch": 8}
    values["rounds"] |= {"rounds": 1, "local_steps": 2, "validation_patients": 12}
    values["evaluation"]["patients_per_site"] = 5
    values["sites"]["unseen"] = []
    values["simulation"]["site_configs"] = str(ROOT / "site_configs" / "synthetic")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
    folder = tmp_path / "consortium"
    line = [str(ROOT / "docs" / "examples" / "consortium.sh"), str(folder), str(tmp_path / "study.toml")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PORT": str(free_port()), "PATH": path}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=850, check=False)
    logs = "\n".join(path.read_text() for path in sorted((folder / "logs").glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "the code that is installed here: yes" in done.stdout and "signed by reviewer: yes" in done.stdout
    assert done.stdout.count("SHA-256") >= 3 and "The two models are the same, bit for bit." in done.stdout
    (arm,) = folder.glob("runs/*/seed-1/federated")
    models = [json.loads((arm / f"round-{n:04d}.json").read_text())["model_sha256"] for n in (0, 1)]
    assert models[0] != models[1], "nothing was learned"
