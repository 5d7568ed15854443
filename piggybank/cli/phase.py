"""`piggybank phase show|plan|apply` and `failover`: an installation grows and shrinks while it runs."""

import asyncio
import json
import sys
import time
from textwrap import indent
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Table

from piggybank import errors
from piggybank.appliance import change, data_folder, folder, observed, orders, overview, succession, topology
from piggybank.capacity import phases
from piggybank.capacity.plan import lines
from piggybank.capacity.standing import Target
from piggybank.cli.appliance import record_act, settings_of

PIPED_WIDTH_CHARACTERS = 180  # where no terminal says its width

_target = click.option("--target", type=click.Choice(get_args(Target)), help="Who starts and stops processes here; else it is found out.")


@click.group()
def phase() -> None:
    """Which phase this installation runs as; what another one would change; change it while it runs.

    \b
    Examples:
      piggybank phase show
      piggybank phase plan 2
      piggybank phase apply 2
    """


@phase.command()
@click.option("--observed", "look", is_flag=True, help="Ask the servers, and end with 1 where they differ from what is declared.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def show(ctx: click.Context, look: bool, as_json: bool) -> None:
    """The phase that was applied, what it sets, and what you set over it; with --observed what the servers show.

    \b
    Examples:
      piggybank phase show
      piggybank phase show --observed
      piggybank phase show --observed --json | jq .differences
    """
    settings = settings_of(ctx)
    said: dict[str, Any] = change.declared(settings)
    if look:
        seen = asyncio.run(observed.look(settings))
        differences = observed.differences(settings, seen)
        said |= {"observed": seen, "differences": differences}
    if as_json:
        click.echo(json.dumps(said))
    else:
        _print(said)
    ctx.exit(1 if said.get("differences") else 0)


@phase.command()
@click.argument("number", type=click.IntRange(0, phases.LAST_PHASE))
@_target
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def plan(ctx: click.Context, number: int, target: Target | None, as_json: bool) -> None:
    """What `apply NUMBER` would change, move and cost, and how long writes wait. Changes nothing; ends with 1 where it is refused.

    \b
    Examples:
      piggybank phase plan 2
      piggybank phase plan 3 --json | jq .refused
    """
    settings = settings_of(ctx)
    made = asyncio.run(change.plan(settings, number, target))
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(made.plan), "on": made.target, "command": made.command}))
    else:
        for line in lines(made.plan):
            click.echo(line)
        if made.command:
            click.echo(f"here the platform does it; run:\n{indent(made.command, '  ')}")
    ctx.exit(1 if made.plan.refused else 0)


@phase.command()
@click.argument("number", type=click.IntRange(0, phases.LAST_PHASE))
@_target
@click.pass_context
def apply(ctx: click.Context, number: int, target: Target | None) -> None:
    """Change to another phase, up or down, on the running installation. Safe to repeat; where nothing runs, the next `up` does it.

    Where the supervisor is killed meanwhile, `piggybank up` serves as what stood before, and applies it again.

    \b
    Examples:
      piggybank phase apply 2
      piggybank phase apply 1
    """
    settings = settings_of(ctx)
    before, made = settings.phase, asyncio.run(change.plan(settings, number, target))
    if made.plan.refused:
        first = made.plan.refused[0]
        raise errors.CannotProceed(what=f"phase {number} is refused, and nothing was changed: {first.what}", do=first.do)
    if made.command:
        click.echo(f"Here the platform starts and stops processes, so nothing was changed. Run:\n{indent(made.command, '  ')}")
        return
    started = time.monotonic()
    for line in change.apply(settings, number):
        click.echo(f"{time.monotonic() - started:7.1f} s  {line}")
    if folder.read_card(settings.data_dir) is None:
        click.echo(f"phase {number} is written down; nothing runs here, so the next `piggybank up` builds it")
        return
    record_act(ctx, "phase.apply", f"phase:{number}", before=before)
    settings = settings_of(ctx)
    differences = observed.differences(settings, asyncio.run(observed.look(settings)))
    if differences:
        raise errors.CannotProceed(what=f"the servers differ: {'; '.join(differences)}", do=f"piggybank phase apply {number}, again")
    click.echo(f"phase {number} ({phases.of(number).name}) runs, as its servers show")


@click.command()
@click.option("--to", default="", help="Name of the standby that takes over; else the one whose log goes furthest.")
@click.option("--accept-loss", is_flag=True, help="Also where an answered write may be on a server that does not answer.")
@click.pass_context
def failover(ctx: click.Context, to: str, accept_loss: bool) -> None:
    """Make a standby the primary. The old one is stopped or killed first, and comes back as a standby only.

    Writes wait meanwhile, or answer 503 with Retry-After. No answered write is lost: an old primary that answers, or ended in order, must
    have sent all it has; of one that crashed every standby must answer, and with durability = local only --accept-loss helps. It waits for
    nothing: a phase that is being applied is cut short, and is to be applied again.

    Where the primary's folder is gone, or it does not start any more, so that `up` refuses, it names the standby that takes its place at
    the next start.

    \b
    Examples:
      piggybank failover
      piggybank failover --to postgres-3
    """
    settings = settings_of(ctx)
    card = folder.read_card(settings.data_dir)
    if card is not None and card.state == "starting":
        do = "wait until it runs; where it never does: piggybank down (a service: systemctl stop ..), then again"
        raise errors.CannotProceed(what=f"{settings.data_dir} is starting just now", do=do)
    if card is None:
        primary = topology.primary_of(settings.data_dir / "stores")
        serves = primary in {process.name for process in overview.processes_of(settings)}  # people: `up` adopts it
        if serves or not succession.has_copies(settings):
            raise errors.CannotProceed(what=f"nothing supervises {settings.data_dir}", do="start it first: piggybank up --detach")
        name = succession.name_heir(settings, to, click.echo, accept_loss=accept_loss)
        click.echo(f"{name} is the primary from the next start on: piggybank up --detach")
        return
    data_folder.prepare_folder(settings.data_dir)  # by who may: the supervisor reads what is written there
    started = time.monotonic()
    for line in orders.carry_out(settings.data_dir, "failover", to, accept_loss=accept_loss):
        click.echo(f"{time.monotonic() - started:7.1f} s  {line}")
    name = topology.primary_of(settings.data_dir / "stores")
    record_act(ctx, "failover", f"database:{name}", **({"accept_loss": True} if accept_loss else {}))


def _print(said: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH_CHARACTERS)
    console.print(f"[bold]phase {said['phase']}[/] {said['name']} ({said['profile']}): {said['serves']}")
    if said["applying"] is not None:
        console.print(f"phase {said['applying']} is being applied; where that was interrupted, `piggybank up` does it again")
    table = Table("", "declared", *(("observed",) if "observed" in said else ()), box=None, pad_edge=False)
    for name, value in said["declared"].items():
        table.add_row(name.replace("_", " "), str(value), *((str(said["observed"].get(name)),) if "observed" in said else ()))
    console.print(table)
    for kept in said["overrides"]:
        console.print(f"{kept['setting']} is {kept['value']} (the phase: {kept['phase_wants']}): {kept['because']}")
    for line in said.get("differences", []):
        console.print(f"[red]differs:[/] {line}")
