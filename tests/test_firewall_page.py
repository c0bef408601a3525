"""docs/firewall.md is what a hospital's IT signs: its tables are the recipes' and the code's."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from client.join import Joining, Node
from common.address import Address
from common.processes import FLOWER_ENVIRONMENT
from server.serve_cli import serve

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "firewall.md").read_text()
RECIPE = (ROOT / "docker" / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", RECIPE, re.M | re.S))
SITE, COORDINATOR = (STAGES["runtime"] + STAGES[image] for image in ("site", "coordinator"))
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
SITES = [service for service in SERVICES.values() if service["image"] == "wardround-site"]


def rows(head: str) -> list[list[str]]:
    """Cells of the table under this head, without code marks."""
    lines = PAGE[PAGE.index(f"| {head} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_ports_are_the_defaults_and_the_guides() -> None:
    allowed = [row[1] for row in rows("to | TCP port")]
    assert allowed[0] == str(inspect.signature(serve).parameters["port"].default)
    assert re.findall(r"^EXPOSE (.+)$", COORDINATOR, re.MULTILINE)[0].split()[0] == allowed[0]
    guide = (ROOT / "docs" / "coordinator.md").read_text()
    assert f"--bulk-port {allowed[1]}" in guide and len(allowed) == 3
    assert SERVICES["proxy"]["environment"]["WARDROUND_PORT"] == allowed[2]
    for service in SITES:
        assert {f"{name}=proxy:{allowed[2]}" for name in ("--coordinator", "--bulk")} <= set(service["command"])
    assert "EXPOSE" not in SITE and SITES and all("ports" not in service for service in SITES)


def test_nothing_of_a_site_listens_further_than_loopback(tmp_path: Path) -> None:
    node = Node(Joining(tmp_path / "site.toml", tmp_path, Address("c", 8000), tmp_path / "ca", tmp_path / "key"))
    line = node.node_command(tmp_path / "node.toml")
    ((process, address, _),) = rows("process | address | who may talk to it")
    assert Path(line[0]).name == process and address.startswith(line[line.index("--host") + 1])
    assert node.executor_command()[node.executor_command().index("--runtime-api-address") + 1].startswith("127.0.0.1:")


def test_the_image_holds_what_the_page_says() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", STAGES["site-code"], re.MULTILINE)
    packages = {line.split()[0] for line in copied if (ROOT / line.split()[0] / "__init__.py").exists()}
    assert {row[0] for row in rows("in it | what")} == packages | {"constraints.txt", "/opt/wardround/sbom"}
    assert "-c constraints.txt" in SITE and "/bill ./sbom\n" in SITE
    assert f"ARG BASE={re.findall(r'on `(.+)`:', PAGE)[0]}\n" in RECIPE


@pytest.mark.parametrize("recipe", [SITE, COORDINATOR])
def test_the_switches_are_set_in_the_image_and_again_by_the_code(recipe: str) -> None:
    told = {row[0]: row[1] for row in rows("variable | value | effect")}
    assert {name: value for name, value in re.findall(r"(\w+)=(\w+)", recipe) if name in told} == told
    assert set(FLOWER_ENVIRONMENT.items()) <= set(told.items())


def test_users_and_mounts() -> None:
    runs = {row[0]: row for row in rows("image | command | user | may write")}
    for image, recipe in (("wardround-site", SITE), ("wardround-coordinator", COORDINATOR)):
        assert re.findall(r"^USER (.+)$", recipe, re.MULTILINE) == [runs[image][2]]
        assert runs[image][3].split(", ") == [*re.findall(r'^VOLUME \["(.+)"\]$', recipe, re.MULTILINE), "/tmp"]
    mounts = {row[0]: row[2] for row in rows("in the container | what | access")}
    for service in SITES:
        given = [mount.split(":") for mount in service["volumes"]]
        assert {place: "read" if access == ["ro"] else "write" for _, place, *access in given} == mounts
        assert service["read_only"] and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
