"""`wardround certs | sites | serve | run`: a coordinator and real sites. Mounted by `server/cli.py`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.address import Address
from common.errors import UserError
from common.study import read_study
from server.coordinator import (
    Coordinator,
    add_site,
    keys_changed,
    prepare,
    register_sites,
    revoke_site,
    rotate_site,
    site_keys,
    site_states,
    validities,
)
from server.run_folder import RunFolder, create_run, read_events, reopen_run

app = typer.Typer(pretty_exceptions_enable=False)
certs_app = typer.Typer(help="Certificates for a test consortium.", no_args_is_help=True)
sites_app = typer.Typer(help="The sites that a coordinator knows.", no_args_is_help=True)
app.add_typer(certs_app, name="certs")
app.add_typer(sites_app, name="sites")
console = Console(highlight=False)

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]


def coordinator_in(folder: Path) -> Coordinator:
    return Coordinator(folder.resolve())


@certs_app.command("make")
def certs_make(
    folder: Folder,
    host: Annotated[list[str], typer.Option("--host", help="Name or IP address that sites use; repeat for more.")],
    days: Annotated[int, typer.Option("--days", min=1, help="Validity; the CA holds for ten years.")] = 365,
) -> None:
    """Make a CA and a server certificate. A real consortium puts its own PKI's files in the same places."""
    from server.certs import make_certificates

    files = make_certificates(coordinator_in(folder).folder / "certs", host, days)
    console.print(f"for the sites:      {files.ca}", soft_wrap=True)
    console.print(f"for `serve`:        {files.server}, {files.server_key}", soft_wrap=True)
    console.print(f"keep offline:       {files.ca_key}", soft_wrap=True)


@certs_app.command("renew")
def certs_renew(
    folder: Folder,
    host: Annotated[list[str], typer.Option("--host", help="Name or IP address that sites use; repeat for more.")],
    days: Annotated[int, typer.Option("--days", min=1, help="Validity.")] = 365,
) -> None:
    """Make a new server certificate with the CA that `make` made, whose ca.key must be back in its place for this. The
    sites keep their ca.pem; start `serve` again."""
    from server.certs import renew_certificate

    files = renew_certificate(coordinator_in(folder).folder / "certs", host, days)
    console.print(f"for `serve`:        {files.server}", soft_wrap=True)
    console.print(f"keep offline again: {files.ca_key}", soft_wrap=True)


@sites_app.command("add")
def sites_add(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name, as in sites.train.")],
    public_key: Annotated[Path, typer.Argument(help="The site.pub that the site sent.")],
) -> None:
    """Take a site's public key. A running `serve` registers it within a few seconds."""
    place = add_site(coordinator_in(folder), name, public_key)
    console.print(f"{name}: {place}", soft_wrap=True)


@sites_app.command("revoke")
def sites_revoke(folder: Folder, name: Annotated[str, typer.Argument(help="The site's name.")]) -> None:
    """Take a site's key out of use for good. A running `serve` cuts its node off within a few seconds; the bulk channel
    and the runs refuse it at once."""
    kept = revoke_site(coordinator_in(folder), name)
    console.print(f"{name}: revoked; the key is kept as {kept}", soft_wrap=True)


@sites_app.command("rotate")
def sites_rotate(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public_key: Annotated[Path, typer.Argument(help="The new site.pub that the site sent.")],
) -> None:
    """Replace a site's key; the one that it had is revoked. Best between two runs: the site joins as another node."""
    place = rotate_site(coordinator_in(folder), name, public_key)
    console.print(f"{name}: {place}", soft_wrap=True)


@sites_app.command("list")
def sites_list(
    folder: Folder,
    run: Annotated[Path | None, typer.Option("--run", help="A run folder: also where each site is in it.")] = None,
) -> None:
    """Which sites are registered, online, offline or revoked; with a run, which are configured and training."""
    states, standings = site_states(coordinator_in(folder)), {}
    if run is not None:
        from server.run_folder import open_run
        from server.status import site_standings

        opened = open_run(run)
        standings = site_standings(read_events(opened.events), opened.study().sites.train)
    table = Table("site", "state", *(["in the run"] if run is not None else []))
    for site in sorted(states | standings):
        row = (site, states.get(site, "not registered"), standings.get(site, "takes no part"))
        table.add_row(*row[: len(table.columns)])
    console.print(table)


@app.command()
def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen on; see docs/operators.md before 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    bulk_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Offer the bulk channel on this port; none unless given.")
    ] = None,
    bulk_above_mb: Annotated[float, typer.Option(min=0, help="Payloads above this size take the channel.")] = 250.0,
    bulk_mb_per_s: Annotated[
        float | None, typer.Option(min=0.001, help="Most that one site moves by the channel; no limit unless given.")
    ] = None,
    round_limit_s: Annotated[
        float | None,
        typer.Option(
            min=1, help="Oldest last round that counts as healthy; twice the study's rounds.deadline_s unless given."
        ),
    ] = None,
) -> None:
    """Run a coordinator until stopped: TLS, registered sites only, a database that survives a restart."""
    from common.certificates import DailyLook
    from common.processes import end_on_termination
    from server.bulk_settings import BulkSettings, write_bulk_settings
    from server.serve import Serving

    coordinator, address = coordinator_in(folder), Address(host, port)
    prepare(coordinator, address)
    bulk = None
    if bulk_port is not None:
        bulk = BulkSettings(
            port=bulk_port, above_mb=bulk_above_mb, mb_per_s=bulk_mb_per_s, round_limit_s=round_limit_s
        )
    write_bulk_settings(coordinator, bulk)
    end_on_termination()
    console.print(f"Starting a coordinator on {address}; logs in {coordinator.logs}", soft_wrap=True)
    try:
        with Serving(coordinator, address) as serving:
            register_sites(coordinator)
            none = "none so far; add them with `wardround sites add`"
            console.print(f"Ready. Sites: {', '.join(site_keys(coordinator)) or none}", soft_wrap=True)
            daily = DailyLook(lambda: validities(coordinator))
            while True:
                for warning in daily.warnings():
                    console.print(warning, style="yellow", markup=False, soft_wrap=True)
                time.sleep(2.0)
                for fallen in serving.watch():
                    console.print(f"{fallen} and was started again")
                follow_keys(coordinator)
    except KeyboardInterrupt:
        console.print("stopped")


@app.command()
def health(folder: Folder) -> None:
    """Ask the coordinator that `serve` runs on this machine. Exit code 0: it answers and rounds are finished in time;
    1: they are not; 2: nothing answers. gRPC's health protocol tells the same on the bulk channel's port."""
    from server.bulk_settings import read_bulk_settings
    from server.health import PROCESS, ROUNDS, ask

    coordinator = coordinator_in(folder)
    settings = read_bulk_settings(coordinator)
    if settings is None:
        raise UserError(f"{coordinator.folder}: there is no bulk channel.", "Health needs `serve --bulk-port`.")
    serving = {service: ask(coordinator, settings.port, service) for service in (PROCESS, ROUNDS)}
    console.print("the coordinator answers" if serving[PROCESS] else "the coordinator is not serving")
    console.print("no round is late" if serving[ROUNDS] else "a run's last finished round is older than its limit")
    if not all(serving.values()):
        raise typer.Exit(1)


def follow_keys(coordinator: Coordinator) -> None:
    """Tell the SuperLink of keys that were added, revoked or rotated, and say so. One that is just being started again
    is told the next time."""
    if not keys_changed(coordinator):
        return
    try:
        for change in register_sites(coordinator):
            console.print(change, markup=False, soft_wrap=True)
    except UserError as refused:
        console.print(f"{refused.what} It is tried again.", style="yellow", markup=False, soft_wrap=True)


def tell(event: dict[str, Any]) -> None:
    """One event as one line."""
    match event:
        case {"event": "round_finished", "round": number, "rounds": rounds, "accuracy": accuracy}:
            shown = "" if accuracy is None else f", validation accuracy {accuracy:.3f}"
            console.print(f"round {number} of {rounds} finished{shown}")
        case {"event": kind, "site": site, "fault": fault}:
            console.print(f"{site}: {kind.replace('_', ' ')}: {fault}", style="yellow", markup=False)
        case {"event": "site_revoked", "site": site, "round": number}:
            console.print(f"round {number}: {site} takes no further part, its key was revoked", style="yellow")
        case {"event": "site_silent" | "site_unreachable" as kind, "site": site}:
            console.print(f"{site}: {kind.replace('_', ' ')}", style="yellow")
        case {"event": "site_progress", "site": site, "round": number, "step": step, "steps": steps}:
            console.print(f"round {number}: {site} has taken step {step} of {steps}", style="dim")
        case {"event": "site_away" | "site_back" as kind, "site": site, "round": number}:
            console.print(f"round {number}: {site} is {kind.removeprefix('site_')}", style="yellow")
        case {"event": "round_goes_on", "round": number, "missing": missing}:
            console.print(f"round {number} goes on without {', '.join(missing)}", style="yellow")
        case {"event": "round_waits", "round": number, "missing": missing}:
            console.print(f"round {number} waits for {', '.join(missing)}", style="yellow")
        case {"event": "site_configured", "site": site, "patients": patients, "questions": questions}:
            console.print(f"{site}: {patients} patients, {questions} questions")


@app.command()
def run(
    study_file: Annotated[Path | None, typer.Argument(metavar="STUDY", help="The study's TOML file.")] = None,
    folder: Annotated[Path, typer.Option("--coordinator", help="The coordinator's folder.")] = Path("coordinator"),
    runs: Annotated[Path, typer.Option("--runs", help="Where the run folder is made.")] = Path("runs"),
    model: Annotated[Path | None, typer.Option("--model", help="Folder of the base model on this machine.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder of built models.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this run folder.")] = None,
) -> None:
    """Run a study on the coordinator that `wardround serve` started on this machine, and wait for its end."""
    from platformdirs import user_cache_path

    from server.health import leading

    coordinator = coordinator_in(folder)
    if (study_file is None) == (resume is None):
        raise UserError(
            "Give a study, or a run to go on with.", "`wardround run STUDY` or `wardround run --resume RUN`."
        )
    if resume is not None:
        place = reopen_run(resume)
        study = place.study()
    else:
        assert study_file is not None
        study = read_study(study_file)
        if study.secure_sum is not None:
            from server.secure_sum import identities

            identities(study)
        states = site_states(coordinator)
        absent = [site for site in study.sites.train if states.get(site) != "online"]
        if absent:
            raise UserError(
                f"Site {absent[0]!r} is {states.get(absent[0], 'not known')}, not online.",
                "A study runs with all its named sites or not at all: `wardround sites list` shows them.",
            )
        place = create_run(runs, study, [study.seed], ["federated"], time.time())
    console.print(f"Study {study.name}, SHA-256 {study.hash}", soft_wrap=True)
    console.print(f"{study.rounds.rounds} rounds with {', '.join(study.sites.train)}", soft_wrap=True)
    with place.alone(), leading(coordinator, place):
        lead(coordinator, place, model, cache or user_cache_path("wardround") / "models")


def lead(coordinator: Coordinator, place: RunFolder, model: Path | None, cache: Path) -> None:
    """Submit a run whose folder is held, wait for its end and write its report."""
    from server.deployed import follow, ready_model, stop_earlier, submit
    from server.report.report import write_report

    for flower_run in stop_earlier(coordinator, place):
        console.print(f"run {flower_run} of Flower's, which an earlier command began for this run, was stopped")
    submitted = submit(coordinator, place, ready_model(place, model, cache))
    try:
        follow(submitted, tell)
    except KeyboardInterrupt:
        submitted.stop()
        raise UserError("Stopped.", f"Go on with `wardround run --resume {place.path}`.") from None
    place.log().write("run_finished")
    console.print(f"run     {place.path}", soft_wrap=True)
    console.print(f"report  {write_report(place.path)}", soft_wrap=True)
