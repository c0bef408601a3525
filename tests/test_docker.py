"""The images' recipe and the compose file: what can be read off them. tests/test_images.py builds them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / "docker" / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", RECIPE, re.M | re.S))
IMAGES = ("site", "coordinator")


def copied(stage: str) -> set[str]:
    """What a stage takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", STAGES[stage], re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


def test_lint() -> None:
    line = [Path(sys.executable).parent / "hadolint", "--failure-threshold", "style", ROOT / "docker" / "Dockerfile"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_sites_image_holds_no_server_code() -> None:
    assert copied("site-code") & {"client", "common", "server"} == {"client", "common"}
    assert copied("coordinator-code") >= {"client", "common", "server"}
    assert "COPY --from=site-code" in STAGES["site"] and "coordinator" not in STAGES["site"]


def test_the_builder_is_sent_what_the_recipe_takes_and_no_more() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == set().union(*map(copied, STAGES))
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_runs_as_root(image: str) -> None:
    text = STAGES["runtime"] + "\n" + STAGES[image]
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"^(RUN|COPY)", text[text.index("\nUSER") :], re.MULTILINE)


def test_the_images_share_their_dependencies_and_only_the_stages_before_reach_an_index() -> None:
    assert re.findall(r"^FROM (\S+) AS (?:site|coordinator)$", RECIPE, re.MULTILINE) == ["runtime", "runtime"]
    for stage in ("site-code", "coordinator-code"):
        assert "--no-deps" in STAGES[stage] and "--no-build-isolation" in STAGES[stage]
    assert not any("RUN" in STAGES[image] for image in IMAGES)


def test_the_build_script_needs_an_engine() -> None:
    line, path = [ROOT / "docker" / "build.sh"], {"PATH": "/nowhere", "ENGINE": "none"}
    done = subprocess.run(["/bin/bash", *line], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "none of docker, podman and buildah works here" in done.stderr


def test_the_commands_of_the_images_are_the_projects() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for image in IMAGES:
        (entry,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', STAGES[image], re.MULTILINE)
        assert entry in scripts


def test_three_hospitals_each_with_a_file_a_volume_and_a_health_check() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    sites = {name: service for name, service in services.items() if service["image"] == "wardround-site"}
    assert sorted(sites) == sorted(path.stem for path in (ROOT / "docker" / "sites").glob("*.toml"))
    assert len(sites) == 3
    for name, service in services.items():
        assert "build" not in service or service["build"]["target"] == service["image"].removeprefix("wardround-")
        assert "healthcheck" in service or name == "proxy"
    for name, service in sites.items():
        assert {f"{name}:/var/lib/wardround", f"./sites/{name}.toml:/site.toml:ro"} < set(service["volumes"])


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
        "coordinator": ["inside"], "proxy": ["inside", "fleet"], "north": ["fleet"], "east": ["fleet"],
        "south": ["fleet"],
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
