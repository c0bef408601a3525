"""The images, built on this machine without a container engine, and what runs in them as compose.yaml would run it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
BASE = re.findall(r"^ARG BASE=(.+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)[0]
NEEDED = ("buildah", "debootstrap", "unshare")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin") is None]
USER = "10001"

INSIDE = """
set -e
root=$1 user=$2
mount --bind "$root" "$root"
while [ "$3" != -- ]; do
  mount --bind "$3" "$root$4"
  [ "$5" = rw ] || mount -o remount,bind,ro "$root$4"
  shift 3
done
shift 3
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set=-all --no-new-privs "$@"
"""
"""A container as far as it matters here: the root is read-only, and the user has no capability and can gain none."""


def run(*line: object, **options: Any) -> str:
    given = [str(part) for part in line]
    done = subprocess.run(given, capture_output=True, text=True, check=False, cwd=ROOT, **options)
    assert done.returncode == 0, f"{' '.join(given[:6])}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Engine:
    """buildah with a storage of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        self.line = ["buildah", *storage, "--storage-driver", "overlay"]

    def works(self) -> bool:
        """Overlays share what images have in common; buildah's other driver copies every layer whole."""
        probe = subprocess.run([*self.line, "from", "scratch"], capture_output=True, check=False)
        return probe.returncode == 0

    def __call__(self, *arguments: object) -> str:
        return run(*self.line, *arguments).strip()

    def make_base(self, folder: Path, mounts: dict[str, Path]) -> None:
        """Debian with its own Python 3.11, under the name of the image that the recipe builds on.

        Args:
            folder: where debootstrap works, or has worked before.
            mounts: what `build` mounts has its place in the base, so that the images do not get one.
        """
        if not folder.exists():
            packages = "python3-venv,python-is-python3,ca-certificates"
            run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder,
                "http://deb.debian.org/debian")  # fmt: skip
        for place, source in mounts.items():
            point = folder / place.lstrip("/")
            (point if source.is_dir() else point.parent).mkdir(parents=True, exist_ok=True)
            if not source.is_dir():
                point.touch()
        if BASE in self("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return
        container = self("from", "scratch")
        self("add", container, folder, "/")
        self("commit", "--rm", container, BASE)

    def build(self, mounts: dict[str, Path]) -> None:
        options = [part for place, source in mounts.items() for part in ("--volume", f"{source}:{place}:ro")]
        run(ROOT / "docker" / "build.sh", *options, env={**os.environ, "ENGINE": " ".join(self.line)})


def pip_mounts(scratch: Path) -> dict[str, Path]:
    """Place in a build -> what lies there: lets pip see what it is configured to see on this machine, as mirrors,
    wheels on the disk and certificates.

    A file with the same settings, and whatever paths they name, in the same places. An index's files lie beside it.
    """
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", "install", ":env:"):
            settings[option] = str(ast.literal_eval(value))
    configured = scratch / "pip.conf"
    configured.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    words = [urlsplit(word) for value in settings.values() for word in value.split()]
    paths = {Path(word.path) if word.scheme == "" else Path(word.path).parent for word in words
             if word.path.startswith("/") and word.scheme in ("", "file")}  # fmt: skip
    return {"/etc/pip.conf": configured} | {str(path): path for path in paths if path.exists()}


@dataclass(frozen=True)
class Image:
    """One image's files and what it says of itself."""

    root: Path
    settings: dict[str, Any]
    files: frozenset[str]
    """Every file, link and folder in it, by its path there."""

    def line(self, arguments: tuple[object, ...], mounts: dict[str, tuple[Path, str]], entry: bool = True) -> list[str]:
        """Its entry point, or another command, with its environment.

        Args:
            mounts: place in the container -> what lies there, and `ro` or `rw`.
        """
        # A container engine gives every container the names of its host, `localhost` among them.
        mounts = {"/etc/hosts": (Path("/etc/hosts"), "ro"), **mounts}
        given = [word for place, (source, access) in mounts.items() for word in (str(source), place, access)]
        for place, (source, _) in mounts.items():
            point = self.root / place.lstrip("/")
            if not point.exists():
                point.mkdir() if source.is_dir() else point.touch()
        user, _ = self.settings["User"].split(":")
        command = [*(self.settings["Entrypoint"] if entry else ()), *map(str, arguments)]
        environment = ["env", "-i", f"--chdir={self.settings['WorkingDir']}", *self.settings["Env"]]
        return ["unshare", "--mount", "sh", "-c", INSIDE, "sh", str(self.root), user, *given, "--", *environment,
                *command]  # fmt: skip

    def do(
        self, *arguments: object, mounts: dict[str, tuple[Path, str]] | None = None, entry: bool = True
    ) -> subprocess.CompletedProcess[str]:
        line = self.line(arguments, mounts or {}, entry)
        return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


def opened(engine: Engine, name: str) -> Image:
    container = engine("from", "--pull-never", name)
    settings = json.loads(engine("inspect", "--type", "image", name))["OCIv1"]["config"]
    root = Path(engine("mount", container))
    return Image(root, settings, frozenset(files_in(root)))


def files_in(root: Path) -> Iterator[str]:
    """What an engine mounts over is left out."""
    for folder, below, names in os.walk(root):
        if Path(folder) == root:
            below[:] = [name for name in below if name not in ("proc", "dev", "sys")]
        place = folder.removeprefix(str(root))
        yield from (f"{place}/{name}" for name in (*below, *names))
