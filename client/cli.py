"""`wardround-site`: what a hospital runs."""

import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from client.join_cli import Config, StateFolder, console, joining_of, site_in, tell_preflight
from client.join_cli import app as join_app
from client.site import Site
from common.command import run as run_command
from common.disk import named_disk_faults
from common.errors import UserError
from common.registry.registry import Registry
from common.study import Study, read_study

app = typer.Typer(help="A hospital's side of a federated study.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(join_app)

StudyFile = Annotated[Path, typer.Option("--study", help="The study's TOML file.")]


def tell_registry(site: Site, registry: Registry) -> None:
    from client.checking import feature_lines

    console.print(f"[bold]{escape(site.registry.title or site.name)}[/bold] ({site.name})")
    features = Table("section", "feature", "unit", "kind", "known at", "asked", title="Features in use")
    for line in feature_lines(registry.features):
        features.add_row(*map(escape, line))
    console.print(features)
    for left in registry.left_out:
        console.print(f"left out: {escape(left.column)}: {escape(left.reason)}")
    for column in site.registry.never:
        console.print(f"never used: {escape(column)}")


def count_questions(site: Site, study: Study | None, share_to: Path | None) -> list[tuple[str, str]]:
    """Rows for `check`: what the site brings to a study, or what it could ask about at all."""
    from client.checking import by_task, by_thumb, by_tokenizer, model_at_hand, own_study, summarise, training_questions
    from client.summary import share
    from common.questions.codebook_file import given_codebook
    from common.registry.registry import load_registry
    from common.tasks.site_questions import site_questions

    registry = load_registry(site.registry)
    tell_registry(site, registry)
    asked = [feature.column for feature in registry.features if feature.ask]
    values = sum(registry.frame[column].count() for column in asked)
    rows = [
        ("patients", f"{registry.frame['patient'].n_unique()}"),
        ("records", f"{registry.frame.height}"),
        ("features in use", f"{len(registry.features)}"),
        ("values to ask about", f"{values}"),
    ]
    given = given_codebook(study.questions) if study else None
    resolved = study or own_study(registry)
    built = training_questions(registry, resolved, given)
    folder, limit = model_at_hand(site, resolved), resolved.grpo.max_prompt_tokens
    found = by_task(built, by_tokenizer(folder, resolved) if folder else by_thumb, limit)
    counted = "by the study's tokenizer" if folder else "at 4 characters a token; the study's tokenizer is not here"
    for one in found:
        rows.append((one.task, f"{one.questions} training questions, {one.patients} patients, {one.features} features"))
        length = f"median {one.median} tokens, 95 % up to {one.most}, the longest {one.longest} ({counted})"
        rows.append(("  prompts", length))
        rows.append(("  too long", f"{one.too_long}, over grpo.max_prompt_tokens = {limit}"))
    tell_examples(built, resolved, 1)
    if share_to is not None:
        share(site.door, study.hash if study else "", summarise(registry, found), share_to)
        rows.append(("to be shared", f"{share_to}"))
    if study is not None:
        questions = site_questions(registry, study, given)
        rows += [
            ("training patients", f"{questions.train['patient'].n_unique()}"),
            ("training questions", f"{questions.train.height}"),
            ("validation questions", f"{questions.validation.height}"),
            ("test questions", f"{questions.test.height}"),
            ("study approved here", "yes" if study.hash in site.settings.policy.approved else "no"),
        ]
    return rows


def tell_examples(asked: pl.DataFrame, study: Study, number: int) -> None:
    """Print questions of each task with their answers, for this site's eyes."""
    from common.questions.randomness import shuffle

    shuffled = shuffle(asked, study.seed)
    for task in study.questions.tasks:
        for row in shuffled.filter(shuffled["task"] == task).head(number).iter_rows(named=True):
            console.rule(escape(f"{task}: {row['section']} / {row['feature']}"))
            console.print(row["prompt"], markup=False, soft_wrap=True)
            letter = "" if row["answer"] is None else f"{'ABCDE'[row['answer']]}. "
            console.print(f"answer: {letter}{row['reference']}", style="green", markup=False)


@app.command()
def init(
    table: Annotated[str, typer.Option("--from", help="CSV, Parquet, Excel or SQLite file, or postgresql://...")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; TABLE's name here unless given.")
    ] = None,
    sheet: Annotated[str, typer.Option("--sheet", help="Of an Excel file with several.")] = "",
    query: Annotated[str, typer.Option("--query", help="Of a database: one SELECT.")] = "",
) -> None:
    """Write a first site file by looking at a table, with reasons, for a person to correct. No value is shown."""
    from client.init import write_draft

    written = write_draft(table, out, sheet, query)
    console.print(f"written: {written.path}", markup=False, soft_wrap=True)
    for kind in ("number", "category", "date"):
        console.print(f"{kind:<22}{sum(seen.kind == kind for seen in written.seen)}")
    console.print(f"{'not to be used':<22}{sum(seen.kind is None for seen in written.seen)}")
    console.print(f"{'marked EDIT':<22}{written.edits}")
    console.print(f"Correct it, then: wardround-site check {written.path}", markup=False, soft_wrap=True)


@app.command()
def check(
    config: Config,
    study: Annotated[Path | None, typer.Option("--study", help="Count this study's questions too.")] = None,
    share: Annotated[
        Path | None, typer.Option("--share", help="Write a summary that may be shown to others to this file.")
    ] = None,
    state: StateFolder = None,
    connect: Annotated[
        str | None, typer.Option("--connect", help="HOST:PORT of the coordinator: look whether a round could work.")
    ] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="With --connect: the coordinator's CA certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="With --connect: this site's private key.")] = None,
    bulk: Annotated[
        str | None, typer.Option("--bulk", help="With --connect: HOST:PORT of the bulk channel, where there is one.")
    ] = None,
) -> None:
    """Load the registry and say what is in it: counts, features used, features left out and why, questions of each
    task, how long they are, and one of each to look at. With --connect, look too whether a round could work: keys,
    certificates, clock, versions, line; with --study also disk, memory and one local step. Nothing leaves but what
    --share writes and, to the coordinator, this site's name and versions; both are logged."""
    asked, site = read_study(study) if study else None, site_in(config, state)
    if connect is not None and (ca is None or key is None):
        raise UserError("--connect needs the coordinator's CA and this site's key.", "Add --ca and --key.")
    for name, value in count_questions(site, asked, share):
        console.print(f"{name:<22}{value}")
    if connect is not None and ca is not None and key is not None:
        tell_preflight(joining_of(config, site, connect, ca, key, bulk), site, asked)


@app.command()
def questions(
    config: Config,
    study: Annotated[Path | None, typer.Option("--study", help="Questions as this study has them.")] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="How many of each task.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder of yours: write all questions there as Parquet instead.")
    ] = None,
) -> None:
    """Print example questions of each task from this site's own patients, or write all of them to a folder. They go
    nowhere else."""
    from client.checking import own_study, training_questions
    from common.questions.codebook_file import given_codebook
    from common.registry.registry import load_registry
    from common.registry.stored import stored_registry
    from common.tasks.site_questions import write_site_questions

    site = site_in(config, None)
    if out is not None:
        with stored_registry(site.registry, out) as stored:
            resolved = read_study(study) if study else own_study(stored.about)
            written = write_site_questions(stored, resolved, out, given_codebook(resolved.questions))
        for name, count in written.items():
            console.print(f"{name:<22}{count}")
        console.print("These files hold patients' values: they are for this site alone.")
        return
    registry = load_registry(site.registry)
    resolved = read_study(study) if study else own_study(registry)
    asked = training_questions(registry, resolved, given_codebook(resolved.questions))
    tell_examples(asked, resolved, number)


@app.command()
def codebook(
    config: Config,
    study: StudyFile,
    out: Annotated[Path | None, typer.Option("--out", help="Write it here instead of printing it.")] = None,
) -> None:
    """This site's own codebook for a study. Value frequencies stand in it: it goes nowhere unless you send it."""
    from common.questions.codebook_file import to_toml
    from common.registry.registry import load_registry
    from common.tasks.site_questions import own_codebook

    found = own_codebook(load_registry(site_in(config, None).registry), read_study(study))
    if out is None:
        console.print(to_toml(found), markup=False, soft_wrap=True)
        return
    out.write_text(to_toml(found), encoding="utf-8")
    console.print(f"written: {out}  SHA-256 {found.hash}", markup=False, soft_wrap=True)


@app.command()
def leaks(
    config: Config,
    study: Annotated[Path | None, typer.Option("--study", help="Questions as this study has them.")] = None,
) -> None:
    """How well answers are told WITHOUT the record, by how choices look. Shown here; it goes nowhere."""
    from common.questions.leaks import Told, leak_table
    from common.registry.registry import load_registry
    from common.study import Questions

    resolved = read_study(study) if study else None
    spec, seed = (resolved.questions, resolved.seed) if resolved else (Questions(), 1)
    site = site_in(config, None)

    def told(share: Told) -> str:
        return f"{share.accuracy:.3f} ({share.low:.3f} to {share.high:.3f})"

    for leak in leak_table(load_registry(site.registry), spec, seed):
        console.print(
            f"{leak.fidelity:<7}{leak.kind:<9} leaks: {'yes' if leak.found else 'no':<4}"
            f"chance {leak.chance:.3f}, by looks {told(leak.by_looks)}, by prior {told(leak.by_prior)}; "
            f"{leak.questions} questions about {leak.patients} patients",
            soft_wrap=True,
        )


@app.command()
def audit(
    config: Config,
    state: StateFolder = None,
    export: Annotated[Path | None, typer.Option("--export", help="Copy the checked log to this new file.")] = None,
    holds: Annotated[
        str, typer.Option("--holds", help="A head that was noted before; it must still stand in the log.")
    ] = "",
) -> None:
    """List what has left this site, check that the log is whole, and print its head: the hash of its last line."""
    from client.audit import first_broken, whole_lines

    site = site_in(config, state)
    place = site.state / "audit.jsonl"
    if not whole_lines(place):
        console.print(f"Nothing has left this site so far ({place}).", soft_wrap=True)
        return
    broken = first_broken(place)
    table = Table("n", "what", "study", "run", "round", "bytes", "besides", title=str(place))
    entries = [json.loads(line) for line in whole_lines(place)[:broken]]
    for entry in entries:
        short = (str(entry[k])[:12] for k in ("n", "kind", "study", "run", "round", "bytes"))
        table.add_row(*short, entry.get("detail", ""))
    console.print(table)
    if broken is not None:
        raise UserError(f"{place}: line {broken + 1} does not continue the chain.", "Keep the file and tell security.")
    if holds and holds not in [entry["hash"] for entry in entries]:
        raise UserError(f"{place}: the noted head is not in it: lines are gone.", "Keep the file and tell security.")
    console.print(f"whole, {len(entries)} lines; head {entries[-1]['hash']}", soft_wrap=True)
    if export is not None:
        with named_disk_faults(export), export.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in whole_lines(place)[: len(entries)])


@app.command()
def budget(config: Config, study: StudyFile, state: StateFolder = None) -> None:
    """What a private study costs each patient of this site: planned, spent so far, and left."""
    from client.ledger import NAME, charges, planned, spent

    resolved = read_study(study)
    if resolved.privacy is None:
        raise UserError(f"{study}: the study has no [privacy] table: nothing is bounded or spent.", "Ask who wrote it.")
    site = site_in(config, state)
    place = site.state / NAME
    plan, used = planned(resolved), spent(place, resolved.hash)
    limit = site.settings.policy.max_epsilon
    table = Table("", "epsilon", title=f"{resolved.name}, at delta {resolved.privacy.delta:g}")
    table.add_row("the study as planned", f"{plan:.3f}")
    table.add_row("this site's limit", "as planned" if limit is None else f"{limit:.3f}")
    table.add_row("spent", f"{used:.3f}")
    table.add_row("left", f"{max(0.0, (plan if limit is None else limit) - used):.3f}")
    others = len({charge.study for charge in charges(place)} - {resolved.hash})
    console.print(table)
    if others:
        console.print(f"{others} other private studies were charged at this site: what they cost adds to this.")
    if limit is not None and limit < plan:
        console.print("The limit is below the plan: this site will refuse the study's last rounds.")


def main() -> None:
    """Entry point."""
    run_command(app)


if __name__ == "__main__":
    main()
