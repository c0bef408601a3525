"""`wardround-site keygen | approve | status | join`, and the pre-flight of `check --connect`."""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_data_path
from rich.console import Console

from client.join import Joining
from client.site import Site, read_site
from common.address import parse_address
from common.errors import UserError
from common.study import Study, read_study

app = typer.Typer(pretty_exceptions_enable=False)
console = Console(highlight=False)

Config = Annotated[Path, typer.Argument(help="The site's TOML file.")]
StateFolder = Annotated[
    Path | None, typer.Option("--state", help="The site's own folder; under your data folder unless given.")
]


def site_in(config: Path, state: Path | None) -> Site:
    config = config.resolve()
    site = read_site(config, Path())
    return Site(site.registry, site.settings, (state or user_data_path("wardround") / site.name).resolve())


def joining_of(config: Path, site: Site, coordinator: str, ca: Path, key: Path, bulk: str | None) -> Joining:
    """Raises: UserError: an address is none."""
    channel = parse_address(bulk) if bulk is not None else None
    where, reviewers = parse_address(coordinator), site.settings.policy.reviewers
    return Joining(config.resolve(), site.state, where, ca.resolve(), key.resolve(), channel, reviewers)


def tell_preflight(joining: Joining, site: Site, study: Study | None) -> None:
    """Print each finding as it is made.

    Raises:
        UserError: a round could not work.
    """
    from client.dry_step import machine
    from client.greeting import Line
    from client.preflight import Finding, preflight

    stops: list[str] = []

    def tell(finding: Finding) -> None:
        console.print(f"{finding.mark:<6}{finding.what:<16}{finding.said}", markup=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':<22}{finding.remedy}", markup=False, soft_wrap=True)
        stops.extend([finding.what] if finding.stops else [])

    line = None
    for found in preflight(joining, site, study):
        if isinstance(found, Line):
            line = found
        else:
            tell(found)
    for finding in machine(site, study, line) if study is not None else ():
        tell(finding)
    if stops:
        raise UserError(f"No round could work here: {', '.join(stops)}.", "Put right what is marked FAIL; check again.")
    console.print("A round could work here." if study else "Connected; give --study to look at this machine too.")


@app.command()
def keygen(folder: Annotated[Path, typer.Argument(help="Where the pair is written.")]) -> None:
    """Make this site's key pair. The private key never leaves the site; the coordinator gets site.pub."""
    from common.keys import make_site_key

    private, public = make_site_key(folder)
    console.print(f"private key, keep it here:   {private}", soft_wrap=True)
    console.print(f"public key, send this one:   {public}", soft_wrap=True)


@app.command()
def approve(
    study: Annotated[Path, typer.Argument(help="The study's TOML file.")],
    config: Annotated[Path, typer.Option("--site", help="The site's TOML file; the approval is written there.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    until: Annotated[
        datetime | None, typer.Option("--until", formats=["%Y-%m-%d"], help="Last day (UTC); no end unless given.")
    ] = None,
) -> None:
    """Read a study and approve it: its SHA-256 is written into the site's file."""
    from client.approval import approve as write_approval

    resolved = read_study(study)
    site_in(config, None)
    console.print(resolved.to_toml(), markup=False)
    console.print(f"SHA-256 {resolved.hash}", soft_wrap=True)
    if not yes and not typer.confirm("Approve this study at this site?"):
        raise typer.Exit(1)
    new = write_approval(config.resolve(), resolved.hash, None if until is None else until.date())
    console.print(f"{'approved' if new else 'was approved already'}: {config}", soft_wrap=True)


@app.command()
def status(
    config: Config,
    state: StateFolder = None,
    healthy: Annotated[bool, typer.Option("--healthy", help="Exit with 1 unless this site is connected.")] = False,
    within: Annotated[
        float | None, typer.Option("--within", min=1, help="With --healthy: most seconds since it answered a round.")
    ] = None,
) -> None:
    """Where this site stands: joined, and of each study approved, configured, training. Nothing is asked or sent."""
    from client.standing import approval, connection, health, studies, work

    site = site_in(config, state)
    if within is not None and not healthy:
        raise UserError("--within is a limit of --healthy.", "Give both, or neither.")
    if healthy:
        found = health(site, within)
        console.print(f"{site.name}: {found.told}", markup=False, soft_wrap=True)
        raise typer.Exit(0 if found.stands else 1)
    console.print(f"{site.name}: {connection(site).told}", markup=False, soft_wrap=True)
    for digest, name in studies(site):
        told = f"study {digest[:12]} {name}".rstrip()
        console.print(f"{told}: {approval(site, digest)}; {work(site, digest)}", markup=False, soft_wrap=True)


@app.command()
def join(
    config: Config,
    coordinator: Annotated[str, typer.Option("--coordinator", help="HOST:PORT.")],
    ca: Annotated[Path, typer.Option("--ca", help="The coordinator's CA certificate.")],
    key: Annotated[Path, typer.Option("--key", help="This site's private key.")],
    state: StateFolder = None,
    bulk: Annotated[
        str | None, typer.Option("--bulk", help="HOST:PORT of the coordinator's bulk channel, where it has one.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option("--attempts", min=1, help="Give up after so many failed starts; never unless given.")
    ] = None,
) -> None:
    """Take part: connect to the coordinator, outbound only, and stay connected until stopped."""
    from client.join import join as stay
    from client.refused import check_versions, why
    from common.processes import end_on_termination

    site = site_in(config, state)
    joining, reviewers = joining_of(config, site, coordinator, ca, key, bulk), site.settings.policy.reviewers
    end_on_termination()
    console.print(f"This site's folder and logs: {site.state}", soft_wrap=True)
    signers = ", ".join(sorted(reviewers)) or "nobody named in policy.reviewers: unsigned code runs too"
    console.print(f"Code that runs here is signed by: {signers}", soft_wrap=True, markup=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    try:
        check_versions(joining, site, say)
        stay(joining, say, partial(why, joining, site), attempts)
    except KeyboardInterrupt:
        console.print(f"{site.name}: left")
