"""`wardround`: the coordinator's commands."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.command import run as run_command
from common.errors import UserError
from common.model import BUILT_IN
from common.study import Study, read_study
from server.bundle_cli import app as bundle_app
from server.serve_cli import app as serve_app

app = typer.Typer(help="Federated GRPO for clinical reasoning.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(serve_app)
app.add_typer(bundle_app, name="bundle")
console = Console(highlight=False)

ENGINES = ("in-process", "ray")

StudyFile = Annotated[Path, typer.Argument(help="The study's TOML file.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder in which runs are kept.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder of built models; your cache folder unless given.")]


@app.command()
def plan(
    study: StudyFile,
    gpu: Annotated[str, typer.Option(help="Also estimate memory and time on this GPU, such as a100-80gb.")] = "",
    gpus: Annotated[int, typer.Option(min=1, help="How many of them train.")] = 1,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the GPU's speed reached.")] = 0.4,
    config: Annotated[Path | None, typer.Option(help="Folder of the base model's config.json.")] = None,
) -> None:
    """Print the resolved study and its SHA-256, which sites approve. Nothing is run."""
    from common.models.context import check_context, known_config

    resolved = read_study(study)
    found = known_config(resolved, config)
    if found is not None:
        check_context(resolved, found)
    console.print(resolved.to_toml(), markup=False, soft_wrap=True)
    console.print(f"SHA-256 {resolved.hash}", soft_wrap=True)
    if resolved.privacy is not None:
        epsilon = resolved.privacy.epsilon(resolved.total_steps)
        console.print(f"privacy: epsilon {epsilon:.3f} at delta {resolved.privacy.delta:g} for each patient of a site")
    if gpu:
        print_needs(resolved, gpu, gpus, utilisation, config)


def print_needs(study: Study, name: str, gpus: int, utilisation: float, config: Path | None) -> None:
    """Estimates of memory, time and traffic.

    Raises:
        UserError: an unknown GPU, or a base model whose shape is not known or whose context is too short.
    """
    from common.models.shape import read_config, shape_of
    from common.plan import GPUS, SHARDINGS, cache, load_of, memory, sampling_load, served, step_seconds

    if name not in GPUS:
        raise UserError(f"--gpu {name}: this GPU is not known.", f"Choose from {', '.join(GPUS)}.")
    shape = shape_of(study, read_config(study, config))
    by_sharding = [memory(study, shape, gpus, sharding) for sharding in SHARDINGS]
    table = Table("GB on each GPU", *SHARDINGS, title=f"Memory, estimated: {gpus} x {name}, longest batch")
    for part in by_sharding[0]:
        table.add_row(part, *(f"{found[part] / 1e9:.1f}" for found in by_sharding))
    table.add_row("fits", *("yes" if found["peak"] < 1e9 * GPUS[name].memory else "no" for found in by_sharding))
    console.print(table)
    load, seconds = load_of(study, gpus), step_seconds(study, shape, GPUS[name], gpus, utilisation)
    step = sum(seconds.values())
    lines = (
        f"parameters  {shape.parameters:,}, trained {shape.trainable:,}",
        f"tokens      {load_of(study, 1).share.tokens:,} a step at most; {load.share.tokens:,} on the busiest GPU: "
        f"{load.share.prompts} x prompt, {load.share.rows} x completion",
        f"step        {step:.0f} s at most: generating {seconds['generating']:.0f} s, learning "
        f"{seconds['learning']:.0f} s, at {100 * utilisation:.0f} % utilisation, without communication",
        f"run         {step * study.total_steps / 86400:.1f} days for {study.total_steps:,} steps",
        f"a round     {shape.down_bytes / 1e9:.3g} GB to each site at most, less where it has the round's before; "
        f"{shape.up_bytes / 1e9:.3g} GB back, or what update.steps leave of it",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    if served(study):
        written, held = shape.base_bytes / 1e9, cache(study, shape, sampling_load(study, gpus)) / 1e9
        console.print(
            f"vLLM        on one more {name}: {written:.3g} GB of weights, written and read again each step, and "
            f"{held:.3g} GB of keys and values where all completions are drawn at once",
            soft_wrap=True,
        )
    rows = study.grpo.prompts_per_step * study.grpo.group_size
    if rows % gpus:
        fitting = ", ".join(str(count) for count in range(1, rows + 1) if rows % count == 0)
        console.print(
            f"{gpus} processes cannot start: all take equally many of a step's {rows} completions, so their number is "
            f"one of {fitting} (without federation a step has as many completions for each site).",
            soft_wrap=True,
        )


@app.command("codebook-diff")
def codebook_diff(
    first: Annotated[Path, typer.Argument(help="A codebook's TOML file.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """In which columns and left-out pairs two codebooks differ; exit code 1 if in any."""
    from common.questions.codebook_file import differences, read_codebook

    lines = differences(read_codebook(first), read_codebook(second))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if lines:
        raise typer.Exit(1)
    console.print("no difference")


@app.command()
def simulate(
    study: Annotated[Path | None, typer.Argument(help="The study's TOML file; not with --resume.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: the study's own and those after it.")] = 1,
    arms: Annotated[str, typer.Option(help="Which arms, with commas between.")] = (
        "base,local,federated,centralized,yardsticks"
    ),
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    engine: Annotated[str, typer.Option(help="in-process, or ray: Flower's simulation engine.")] = "in-process",
    runs: Runs = Path("runs"),
    cache: Cache = None,
) -> None:
    """Play every site of a study on this machine, compare the arms and write a report."""
    from server.run_folder import create_run, reopen_run

    if (study is None) == (resume is None):
        raise UserError("Give either a study file or --resume RUN.", "See `wardround simulate --help`.")
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: there is no such engine.", f"Choose from {', '.join(ENGINES)}.")
    if resume is not None:
        go(reopen_run(resume), cache)
        return
    assert study is not None
    resolved = read_study(study)
    chosen = named_arms(arms)
    check_before(resolved, runs, cache)
    numbers = list(range(resolved.seed, resolved.seed + seeds))
    go(create_run(runs, resolved, numbers, chosen, time.time(), engine), cache)


@app.command()
def centralize(
    study: StudyFile,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    runs: Runs = Path("runs"),
    cache: Cache = None,
) -> None:
    """Train on the pooled questions alone: the baseline without federation."""
    from server.run_folder import create_run

    resolved = read_study(study)
    check_before(resolved, runs, cache)
    numbers = list(range(resolved.seed, resolved.seed + seeds))
    go(create_run(runs, resolved, numbers, ["base", "centralized", "yardsticks"], time.time()), cache)


@app.command("audit-privacy")
def audit_privacy(
    study: StudyFile,
    site: Annotated[str, typer.Option(help="Whose training is attacked; the first of sites.train unless given.")] = "",
    canaries: Annotated[int, typer.Option(min=4, help="Canaries, and as many patients for the membership test.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the coins that say who is in.")] = 1,
    cache: Cache = None,
) -> None:
    """Play one site's training with canaries in it, attack it, and print what was found beside epsilon's bound."""
    from server.attacks.playing import play

    resolved = read_study(study)
    found = play(resolved, site or resolved.sites.train[0], canaries, seed, cache_folder(cache))
    for line in found.lines():
        # Without markup, which would take [privacy] for a style.
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html from what lies in a run folder."""
    from server.report.report import write_report

    console.print(f"report  {write_report(run)}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Option(help="A new folder for the model.")],
    arm: Annotated[str, typer.Option(help="federated, centralized or local.")] = "federated",
    site: Annotated[str, typer.Option(help="Of the arm local: whose model.")] = "",
    seed: Annotated[int | None, typer.Option(help="The run's first seed unless given.")] = None,
    number: Annotated[int | None, typer.Option("--round", help="The last finished round unless given.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA factors alone.")] = False,
) -> None:
    """Write a trained model as a Hugging Face folder with a model card."""
    from server.export import export as write
    from server.run_folder import open_run
    from server.workers import Job

    folder = open_run(run)
    job = Job(folder.about()["seeds"][0] if seed is None else seed, arm, site)
    place = write(folder, job, number, "adapter" if adapter else "model", to)
    console.print(f"model   {place}", soft_wrap=True)


@app.command()
def status(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Where a run stands: its last finished rounds, who took part in each, and what went wrong on the way."""
    from server.run_folder import open_run
    from server.status import print_status

    print_status(open_run(run), console)


def named_arms(text: str) -> list[str]:
    from server.arms import ARMS

    named = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in named if name not in ARMS]
    if unknown or not named:
        raise UserError(f"--arms {text!r}: there is no arm {unknown[0] if unknown else ''!r}.",
                        f"Choose from {', '.join(ARMS)}.")  # fmt: skip
    return [arm for arm in ARMS if arm in named]


def cache_folder(cache: Path | None) -> Path:
    from platformdirs import user_cache_path

    return cache or user_cache_path("wardround") / "models"


def check_before(study: Study, runs: Path, cache: Path | None) -> None:
    """What would stop a run stops it here, before its folder is made; features that sites leave out are listed.

    Raises:
        UserError: a site's file or table, the base model or a folder to write to is at fault.
    """
    from server.before import check_model, check_sites
    from server.run_folder import check_writable

    check_model(study)
    for site, left in check_sites(study):
        console.print(f"{site}: left out: {left.column}: {left.reason}", markup=False, soft_wrap=True)
    check_writable(runs)
    if study.model.base == BUILT_IN:
        check_writable(cache_folder(cache), option="--cache")


def go(folder: Any, cache: Path | None) -> None:
    """Run what is left of a run and say where the report is."""
    from server.arms import run_arms, workers_for
    from server.watching import watching

    study, about = folder.study(), folder.about()
    seeds, arms = about["seeds"], about["arms"]
    console.print(f"[bold]{study.title or study.name}[/bold]  SHA-256 {study.hash[:16]}", soft_wrap=True)
    console.print(
        f"{len(study.sites.train)} sites, {study.rounds.rounds} rounds of {study.rounds.local_steps} steps; arms "
        f"{', '.join(arms)}; seeds {', '.join(str(seed) for seed in seeds)}; {workers_for(study)} processes",
        soft_wrap=True,
    )
    console.print(f"run     {folder.path}", soft_wrap=True)
    with watching(console, folder, study, seeds, arms) as tick:
        result = run_arms(folder, cache_folder(cache), tick)
    console.print(arms_table(result))
    console.print(f"report  {folder.path / 'report.html'}", soft_wrap=True)


def arms_table(result: dict[str, Any]) -> Table:
    """Accuracy with its 95 % interval, arm by split."""
    splits = sorted({split for found in result["arms"].values() for split in found})
    table = Table("arm", *(split.replace("_", " ") for split in splits), title="Accuracy, % [95 % interval]")
    for arm, found in result["arms"].items():
        table.add_row(arm.replace("_", " "), *(cell(found.get(split)) for split in splits))
    return table


def cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["ci95"]
    return f"{100 * found['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Entry point."""
    run_command(app)


if __name__ == "__main__":
    main()
