"""Both images are built, and what they hold and do is looked at inside: no container engine, but the real recipes."""

import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from common.address import free_port
from tests.images import BASE, MISSING, ROOT, USER, Engine, Image, opened, pip_mounts, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building without a container engine needs root"),
]
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
PACKAGES = "/opt/wardround/lib/python3.11/site-packages"
CODE = {"site": {"client", "common"}, "coordinator": {"client", "common", "server"}}
LEFT_IN_ETC = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")} | {
    "/etc/.pwd.lock", "/etc/hosts"
}  # fmt: skip
"""What `useradd` leaves, and the empty file over which buildah mounts the machine's own."""
OPEN_TO_ALL = {"/tmp", "/var/tmp", "/run/lock"}
"""Folders of Debian's that everybody may write to; a read-only root takes all but /tmp away."""


@dataclass(frozen=True)
class Images:
    base: Image
    site: Image
    coordinator: Image

    def of(self, name: str) -> Image:
        return {"site": self.site, "coordinator": self.coordinator}[name]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """WARDROUND_IMAGES names a folder where base and layers are kept from one time to the next."""
    kept = os.environ.get("WARDROUND_IMAGES")
    scratch = Path(kept) if kept else tmp_path_factory.mktemp("images")
    engine, mounts = Engine(scratch / "engine"), pip_mounts(scratch)
    if not engine.works():
        pytest.skip("no overlay file system can be mounted here")
    began = time.monotonic()
    engine.make_base(scratch / "base", mounts)
    based = time.monotonic()
    engine.build(mounts)
    print(f"base {based - began:.0f} s, both images {time.monotonic() - based:.0f} s")
    try:
        yield Images(*(opened(engine, name) for name in (BASE, "wardround-site", "wardround-coordinator")))
    finally:
        engine("rm", "--all")
        if not kept:
            run("rm", "-rf", scratch)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What a volume at /var/lib/wardround is when the image begins it."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, int(USER), int(USER))
    return folder


def site_mounts(name: str, state: Path, ca: Path | None = None) -> dict[str, tuple[Path, str]]:
    """As in docker/compose.yaml."""
    mounts = {"/var/lib/wardround": (state, "rw"), "/site.toml": (ROOT / "docker" / "sites" / f"{name}.toml", "ro"),
              "/site_configs": (ROOT / "site_configs", "ro")}  # fmt: skip
    return mounts | ({"/ca.pem": (ca, "ro")} if ca is not None else {})


@pytest.mark.parametrize("name", sorted(CODE))
def test_what_is_in_an_image_is_its_base_its_user_the_dependencies_and_the_declared_code(
    images: Images, name: str
) -> None:
    added = images.of(name).files - images.base.files
    ours = {path for path in added if not path.startswith(("/opt/wardround/", "/etc/"))}
    assert ours == {"/opt", "/opt/wardround", "/var/lib/wardround"} - images.base.files
    assert {path for path in added if path.startswith("/etc/")} <= LEFT_IN_ETC
    tracked = set(run("git", "ls-files", "--", *sorted(CODE[name])).split())
    held = {path.removeprefix(f"{PACKAGES}/") for path in added if path.startswith(PACKAGES)}
    roots = {path.split("/")[0] for path in held}
    assert roots & {"client", "common", "server", "tests", "studies", "site_configs", "docs", "docker"} == CODE[name]
    code = {path for path in held if path.split("/")[0] in CODE[name] and "__pycache__" not in path}
    root = images.of(name).root / PACKAGES.lstrip("/")
    assert {path for path in code if not (root / path).is_dir()} <= tracked
    assert {f"{package}/__init__.py" for package in CODE[name]} <= code


@pytest.mark.parametrize("name", sorted(CODE))
def test_no_key_is_in_an_image(images: Images, name: str) -> None:
    image = images.of(name)
    added = image.files - images.base.files
    suspects = [image.root / path.lstrip("/") for path in added if path.endswith((".pem", ".key", ".pub", ".secret"))]
    assert [path for path in suspects if b"PRIVATE KEY" in path.read_bytes()] == []
    assert {path.name for path in suspects} <= {"cacert.pem", "roots.pem"}, "certificates of certifi and of gRPC"


@pytest.mark.parametrize("name", sorted(CODE))
def test_the_user_may_write_to_its_own_folder_alone(images: Images, name: str) -> None:
    image, uid = images.of(name), int(USER)
    writable = set()
    for path in image.files:
        found = (image.root / path.lstrip("/")).lstat()
        may = (found.st_uid == uid) or (found.st_gid == uid and found.st_mode & stat.S_IWGRP)
        if not stat.S_ISLNK(found.st_mode) and (may or found.st_mode & stat.S_IWOTH):
            writable.add(path)
    assert "/var/lib/wardround" in writable and writable <= {"/var/lib/wardround"} | OPEN_TO_ALL


def test_the_root_is_read_only_and_the_user_has_no_capability(images: Images) -> None:
    """Of what the other tests run in: a container as docker/compose.yaml starts one."""
    told = images.site.do("cat", "/proc/self/status", entry=False).stdout
    assert re.search(rf"^Uid:\s+{USER}\s", told, re.MULTILINE)
    assert re.findall(r"^Cap(?:Prm|Eff|Bnd):\s+(\S+)$", told, re.MULTILINE) == ["0" * 16] * 3
    refused = images.site.do("touch", "/var/tmp/x", entry=False)
    assert refused.returncode == 1 and "Read-only file system" in refused.stderr


def test_a_hospital_looks_at_its_registry_in_the_image(images: Images, state: Path) -> None:
    looked = images.site.do("check", "/site.toml", mounts=site_mounts("north", state))
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "synthetic-north" in looked.stdout and "patients" in looked.stdout


@pytest.mark.parametrize(
    ("name", "module", "there"),
    [("site", "server", False), ("site", "client", True), ("coordinator", "server", True), ("site", "pip", False)],
)
def test_modules(images: Images, name: str, module: str, there: bool) -> None:
    """A hospital's image has no code of the coordinator's, and nothing in it installs packages."""
    tried = images.of(name).do("python", "-c", f"import {module}", entry=False)
    assert (tried.returncode == 0) == there, tried.stderr
    assert there or f"No module named '{module}'" in tried.stderr


@pytest.mark.parametrize("name", sorted(CODE))
def test_the_bill_of_materials_names_what_is_installed(images: Images, name: str) -> None:
    image = images.of(name)
    bill = json.loads((image.root / "opt/wardround/sbom/python.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "wardround"
    named = {plain(part["name"]): part["version"].partition("+")[0] for part in bill["components"]}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {plain(package): version for package, version in pinned.items()}
    assert named == {package: pinned.get(package) for package in named} and {"torch", "flwr"} <= named.keys()
    ask = "from importlib.metadata import distributions as d; print(*{p.metadata['Name'] for p in d()}, sep='\\n')"
    there = {plain(package) for package in image.do("python", "-c", ask, entry=False).stdout.split()}
    assert there == named.keys() | {"wardround"}
    lines = (image.root / "opt/wardround/sbom/debian.tsv").read_text().splitlines()
    debian = {package.partition(":")[0]: version for package, version in (line.split("\t") for line in lines)}
    assert debian["libc6"].startswith("2.36-")


def plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def asked(image: Image, service: str, mounts: dict[str, tuple[Path, str]]) -> subprocess.CompletedProcess[str]:
    """The health check of a service of docker/compose.yaml."""
    kind, *line = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD" and line[0] == image.settings["Entrypoint"][0]
    return image.do(*line[1:], mounts=mounts)


class Container:
    """A service that runs until the block ends; `log` is what it says. The line's process is the service itself."""

    def __init__(self, log: Path, line: list[str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Container":
        return self

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 240
        while text not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def test_a_coordinator_starts_a_hospital_joins_and_both_are_healthy(
    images: Images, state: Path, tmp_path: Path
) -> None:
    """The commands and health checks of docker/compose.yaml, on loopback and without the proxy."""
    home, port, bulk = "/var/lib/wardround/coordinator", str(free_port()), str(free_port())
    mounts = {"/var/lib/wardround": (state, "rw")}
    here, there = images.coordinator, images.site
    made = here.do("certs", "make", home, "--host", "localhost", mounts=mounts)
    assert made.returncode == 0, made.stderr
    assert asked(here, "coordinator", mounts).returncode == 2, "nothing answers yet"

    hospital = tmp_path / "north"
    hospital.mkdir(mode=0o700)
    os.chown(hospital, int(USER), int(USER))
    inside = site_mounts("north", hospital, state / "coordinator" / "certs" / "ca.pem")
    assert there.do("keygen", "/var/lib/wardround", mounts=inside).returncode == 0
    published = mounts | {"/site.pub": (hospital / "site.pub", "ro")}
    added = here.do("sites", "add", home, "synthetic-north", "/site.pub", mounts=published)
    assert added.returncode == 0, added.stderr
    assert asked(there, "north", inside).returncode == 1, "it has not joined yet"

    said = SERVICES["coordinator"]["command"]
    replaced = {"0.0.0.0": "127.0.0.1", "8000": port, "8001": bulk}
    serve = here.line(tuple(replaced.get(word, word) for word in said), mounts)
    dialled = {f"--{name}=proxy:8443": f"--{name}=localhost:{to}" for name, to in
               (("coordinator", port), ("bulk", bulk))}  # fmt: skip
    join = there.line(tuple(dialled.get(word, word) for word in SERVICES["north"]["command"]), inside)
    with Container(tmp_path / "serve.log", serve) as coordinator:
        coordinator.wait_for("Ready.")
        healthy = asked(here, "coordinator", mounts)
        assert healthy.returncode == 0 and "no round is late" in healthy.stdout, healthy.stderr
        with Container(tmp_path / "join.log", join) as site:
            site.wait_for("connecting to")
            end = time.monotonic() + 120
            while (look := asked(there, "north", inside)).returncode != 0:
                assert time.monotonic() < end, look.stdout + site.log.read_text()
                time.sleep(1)
            assert "registered" in look.stdout
            assert site.stop() == 0
        assert coordinator.stop() == 0, coordinator.log.read_text()
    assert "stopped" in coordinator.log.read_text()
    assert asked(there, "north", inside).returncode == 1 and asked(here, "coordinator", mounts).returncode == 2
