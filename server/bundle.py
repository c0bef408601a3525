"""The application bundle that Flower ships to the sites: our code and nothing else.

It is staged in an empty folder, from the packages that are running here, so that nothing lying in a working
tree (a site's configuration, a registry's file) can go along; `fab-include` says the same a second time.
"""

import hashlib
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import tomli_w

import common
import server
from common.errors import UserError

CLIENT_APP = "client.app:app"
PUBLISHER = NAME = "wardround"
RUN_CONFIG = {"study": "", "run": "", "model": "", "arm-dir": "", "events": "", "coordinator": "", "played-keys": ""}
"""What `server/app.py` reads, all set by `wardround run`. Flower refuses other keys."""


def packages() -> dict[str, Path]:
    """Where the code of each package lies. The client's stands beside the server's and is not imported."""
    server_folder, common_folder = Path(str(server.__file__)).parent, Path(str(common.__file__)).parent
    client_folder = server_folder.parent / "client"
    if not client_folder.is_dir():
        raise UserError(
            f"{client_folder}: the sites' code is not installed here.", "Install the whole wardround package."
        )
    return {"client": client_folder, "common": common_folder, "server": server_folder}


def project(client_app: str) -> dict[str, object]:
    return {
        "project": {"name": NAME, "version": version("wardround")},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": PUBLISHER,
                    "fab-include": [f"{name}/**/*.py" for name in packages()],
                    "components": {"serverapp": "server.app:app", "clientapp": client_app},
                    "config": RUN_CONFIG,
                }
            }
        },
    }


def stage_bundle(folder: Path, client_app: str = CLIENT_APP) -> Path:
    """Write the bundle's tree to `folder/wardround`: every module of client, common and server."""
    stage = folder / "wardround"
    stage.mkdir(parents=True)
    for package, source in packages().items():
        for module in sorted(source.rglob("*.py")):
            target = stage / package / module.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(module, target)
    (stage / "pyproject.toml").write_text(tomli_w.dumps(project(client_app)), encoding="utf-8")
    return stage


def build_bundle() -> bytes:
    """The bundle of the code that runs here, as `flwr run` would make it; the same code gives the same bytes."""
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="wardround-") as folder:
        return build_fab_from_disk(stage_bundle(Path(folder)))


def app_spec() -> str:
    """How Flower names the bundle when a hub has it."""
    return f"@{PUBLISHER}/{NAME}=={version('wardround')}"


def bundle_sha256(bundle: bytes) -> str:
    return hashlib.sha256(bundle).hexdigest()
