"""The images' recipes. They cannot be built here; what can be read off them is."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RECIPES = ("Dockerfile.site", "Dockerfile.coordinator")


def copied(recipe: str) -> set[str]:
    """What a recipe takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "docker" / recipe).read_text(), re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


@pytest.mark.parametrize("recipe", RECIPES)
def test_lint(recipe: str) -> None:
    line = [Path(sys.executable).parent / "hadolint", "--failure-threshold", "style", ROOT / "docker" / recipe]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_sites_image_holds_no_server_code() -> None:
    assert copied("Dockerfile.site") & {"client", "common", "server"} == {"client", "common"}
    assert copied("Dockerfile.coordinator") >= {"client", "common", "server"}


def test_the_builder_is_sent_what_the_recipes_take_and_no_more() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied("Dockerfile.coordinator") | copied("Dockerfile.site")
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_runs_as_root(recipe: str) -> None:
    text = (ROOT / "docker" / recipe).read_text()
    final = text[text.rindex("\nFROM") :]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"^(RUN|COPY)", final[final.index("\nUSER") :], re.MULTILINE)


def test_the_commands_of_the_images_are_the_projects() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for recipe in RECIPES:
        (entry,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', (ROOT / "docker" / recipe).read_text(), re.MULTILINE)
        assert entry in scripts


def test_services_are_hardened_and_data_is_read_only() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert "ports" not in service, name
        mounts = [mount.split(":") for mount in service["volumes"] if isinstance(mount, str)]
        assert all(mount[-1] == "ro" for mount in mounts if mount[0].startswith(".")), name


def test_sites_reach_the_proxy_alone_and_it_sees_only_the_certificates() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services, proxy = compose["services"], compose["services"]["proxy"]
    assert {name: service["networks"] for name, service in services.items()} == {
        "coordinator": ["inside"], "proxy": ["inside", "fleet"], "north": ["fleet"], "south": ["fleet"]
    }  # fmt: skip
    assert all(network == {"internal": True} for network in compose["networks"].values())
    settings = (ROOT / "docker" / "proxy" / "nginx.conf.template").read_text()
    wanted = set(re.findall(r"\$\{(\w+)\}", settings))
    assert wanted == {name for name in proxy["environment"] if name.startswith("WARDROUND_")}
    dialled = {option for option in services["north"]["command"] if option.startswith(("--coordinator", "--bulk"))}
    where = f"proxy:{proxy['environment']['WARDROUND_PORT']}"
    assert dialled == {f"--coordinator={where}", f"--bulk={where}"}
    _, certificates = proxy["volumes"]
    assert certificates["volume"] == {"subpath": "coordinator/certs"} and certificates["read_only"]
