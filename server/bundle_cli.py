"""`wardround bundle`: the code that sites run, built, reviewed, signed and published. Mounted by `server/cli.py`."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.console import Console

from common.errors import UserError
from server.coordinator import Coordinator

app = typer.Typer(
    help="The code that sites run: build, sign, verify, publish.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(highlight=False)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's file.")]


def content_of(bundle: Path) -> bytes:
    try:
        return bundle.read_bytes()
    except OSError:
        raise UserError(f"{bundle}: cannot be read.", "Give the file that `wardround bundle build` wrote.") from None


@app.command()
def keygen(folder: Annotated[Path, typer.Argument(help="Where the pair is written.")]) -> None:
    """Make a reviewer's key pair. The private key stays with the reviewer; sites get the line in reviewer.pub."""
    from common.keys import make_reviewer_key

    private, public = make_reviewer_key(folder)
    console.print(f"private key, keep it:        {private}", soft_wrap=True)
    console.print(f"public key, for the sites:   {public}", soft_wrap=True)


@app.command()
def build(bundle: Bundle) -> None:
    """Write the bundle of the code that is installed here. The same code gives the same bytes, wherever it is built."""
    from server.bundle import build_bundle, bundle_sha256

    content = build_bundle()
    bundle.write_bytes(content)
    console.print(f"written: {bundle}  SHA-256 {bundle_sha256(content)}", markup=False, soft_wrap=True)


@app.command()
def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option("--key", help="The reviewer's private key.")],
    name: Annotated[str, typer.Option("--name", help="The reviewer's name, as it stands in the sites' policies.")],
) -> None:
    """Sign a bundle that you have read: sites that name you will run it."""
    from common.keys import read_reviewer_key
    from server.review import sign_bundle

    content_of(bundle)
    place = sign_bundle(bundle, read_reviewer_key(key), name)
    console.print(f"signed by {name}: {place}", markup=False, soft_wrap=True)


@app.command()
def verify(
    bundle: Bundle,
    reviewer: Annotated[
        list[str] | None, typer.Option("--reviewer", help="NAME=FILE of a reviewer's public key; repeat for more.")
    ] = None,
) -> None:
    """Say whether a bundle is the code that is installed here, and who of the given reviewers has signed it. Exit code
    1 where it is other code, or a reviewer has not signed it."""
    from server.bundle import build_bundle, bundle_sha256
    from server.review import is_signed, read_signatures

    content = content_of(bundle)
    same = content == build_bundle()
    console.print(f"SHA-256 {bundle_sha256(content)}", soft_wrap=True)
    console.print(f"the code that is installed here: {'yes' if same else 'NO'}")
    signatures = {one.public_key_id: one for one in read_signatures(bundle)}
    good = same
    for name, public in map(named_key, reviewer or []):
        signed = name in signatures and is_signed(content, signatures[name], public)
        console.print(f"signed by {name}: {'yes' if signed else 'NO'}", markup=False)
        good = good and signed
    if not good:
        raise typer.Exit(1)


def named_key(text: str) -> tuple[str, Ed25519PublicKey]:
    """Raises: UserError: it is not NAME=FILE, or the file holds no reviewer's public key."""
    from common.keys import reviewer_key

    name, _, file = text.partition("=")
    try:
        return name, reviewer_key(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"--reviewer {text}: there is no public key.", "Write NAME=reviewer.pub.") from None


@app.command()
def publish(folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")], bundle: Bundle) -> None:
    """Let the coordinator's runs ship this signed bundle."""
    from server.review import publish as put

    content_of(bundle)
    put(Coordinator(folder.resolve()), bundle)
    console.print("Runs started from now on ship it.")
