"""`piggybank move`."""

import asyncio
import sys

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from piggybank import settings as settings_file
from piggybank.appliance import folder
from piggybank.appliance import move as moving
from piggybank.cli import appliance

MIB = 1024 * 1024


@click.command()
@click.option("--to", default="", metavar="URL", help="Owner's address of an empty database there; -: read it from standard input.")
@click.option("--application-url", default="", metavar="URL", help="A role made for the application there. Without it one is made.")
@click.option("--check", is_flag=True, help="Only look, and say how long writes would wait.")
@click.option("--undo", is_flag=True, help="Let writes go on after a move that was killed (or finish it, if it had switched).")
@click.pass_context
def move(ctx: click.Context, *, to: str, application_url: str, check: bool, undo: bool) -> None:
    """Move the database to another PostgreSQL server, of the same version or newer.

    Writes wait while the rows go over (503 with Retry-After; reads go on), both books are compared, the new addresses are written into
    piggybank.toml, and what runs is started again. The old database is kept, and never written to again. Safe to repeat: a move that was
    killed is undone or finished by the next one. The Valkeys stay where they are.

    \b
    Examples:
      piggybank move --check --to postgresql://owner:password@db.example.com/piggybank?sslmode=verify-full
      piggybank move --to postgresql://owner:password@db.example.com/piggybank?sslmode=verify-full
      piggybank move --undo
    """
    if bool(to) == undo:
        raise click.UsageError("give either --to URL or --undo")
    to = sys.stdin.readline().strip() if to == "-" else to
    data_dir = settings_file.load((ctx.find_root().obj or {}).get("data_dir")).data_dir
    if check:
        found = asyncio.run(moving.look(settings_file.load(data_dir), to, application_url))
        _print_look(found)
        ctx.exit(1 if found.problems else 0)
    left = moving.settle(data_dir)
    if left is not None:
        click.echo("a move that was killed is undone: writes go on" if left.undone else "a move that was killed is finished")
    settings = settings_file.load(data_dir)  # anew: it may have switched
    if left is not None and not left.undone:
        _start_again(ctx, left)
    elif undo or settings.owner_database_url == to:
        click.echo("nothing else to do" if left else "nothing to undo" if undo else "the database is there already")
    else:
        _move(ctx, to, application_url)


def _move(ctx: click.Context, to: str, application_url: str) -> None:
    settings = appliance.settings_of(ctx)
    found = asyncio.run(moving.look(settings, to, application_url))
    _print_look(found)
    if found.problems:
        ctx.exit(1)
    running = folder.read_card(settings.data_dir) is not None
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("looking")
        done = moving.move(settings, to, application_url, lambda text: bar.update(task, description=text), was_running=running)
    assert done.copied is not None
    for what, said in done.copied.books.items():
        click.echo(f"{what}: {said}")
    rows = sum(done.copied.tables.values())
    click.echo(f"both sides agree: {rows:,} rows in {len(done.copied.tables)} tables, {done.copied.size_bytes / MIB:,.1f} MiB")
    if done.copied.left_behind:
        click.echo(f"not piggybank's, left behind: {', '.join(done.copied.left_behind)}")
    click.echo(f"writes waited {done.copied.seconds:.1f} s for the copy")
    _start_again(ctx, done)
    appliance.record_act(ctx, "move", f"database:{found.target}", before=found.source, rows=rows)
    click.echo(f"moved to {found.target}; the old database is kept and takes no writes. Check everything: piggybank verify")


def _start_again(ctx: click.Context, done: moving.Settled) -> None:
    """With the new addresses; `up` takes the journal away."""
    settings = appliance.settings_of(ctx)
    if not done.journal.was_running:
        click.echo("start it: piggybank up --detach")
        return
    ctx.invoke(appliance.down)
    appliance.up_detached(settings)


def _print_look(found: moving.Look) -> None:
    click.echo(f"from {found.source} to {found.target}")
    for fact in found.facts:
        click.echo(fact)
    if found.problems:
        for problem in found.problems:
            click.echo(f"piggybank: {problem.what}; {problem.do}", err=True)
        return
    click.echo(f"{found.size_bytes / MIB:,.1f} MiB to copy; writes would wait about {found.writes_wait_s} s, reads go on")
