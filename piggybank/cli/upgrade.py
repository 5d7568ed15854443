"""`piggybank upgrade` and `upgrade postgres`."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from piggybank import telemetry
from piggybank.appliance import majors, versions
from piggybank.appliance import upgrade as work
from piggybank.cli.appliance import record_act, settings_of

FILES = (".whl", ".tar.gz", ".tgz")


@click.group(invoke_without_command=True)
@click.option("--to", "wanted", metavar="VERSION|FILE", help="A version that is here, or the wheel or bundle of a new one.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and what stands in the way; change nothing.")
@click.option("--no-backup", "without_backup", is_flag=True, help="You have one of your own, checked, of a moment ago.")
@click.option(
    "--stopped", is_flag=True, help="Of what does not run: may this version follow, and the backup. installer/install.sh does it."
)
@click.option("--json", "as_json", is_flag=True, help="With --plan: print JSON for scripts.")
@click.pass_context
def upgrade(ctx: click.Context, wanted: str | None, only_plan: bool, without_backup: bool, stopped: bool, as_json: bool) -> None:
    """Another version of piggybank, while people pay: backup, schema, a trial, the change, and back where something does not run.

    The versions lie side by side in the data folder, so --to with the number of an earlier one goes back to it, as long as the schema
    is one that it knows. Safe to repeat. installer/install.sh of a newer checkout does the same.

    \b
    Examples:
      piggybank upgrade --plan --to piggybank-0.2.0-py3-none-any.whl
      piggybank upgrade --to piggybank-0.2.0-bundle.tar.gz
      piggybank upgrade --to 0.1.0
      piggybank upgrade postgres
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_of(ctx)
    data_dir = settings.data_dir
    if stopped:
        telemetry.configure("warning", "console")
        work.prepare(settings, _tell)
        return
    name = _name_of(data_dir, wanted)
    if name and name != versions.running(data_dir):
        _become(data_dir, name, only_plan=only_plan, without_backup=without_backup, as_json=as_json)
    telemetry.configure("warning", "console")  # its own lines say what happens
    made = work.look(settings, without_backup=without_backup)
    if only_plan:
        _print_plan(made, as_json=as_json)
        return
    work.carry_out(made, _tell, without_backup=without_backup)
    record_act(ctx, "upgrade", f"version:{made.after}", before=made.before)
    click.echo(f"piggybank {made.after} runs: {settings.url}")


@upgrade.command()
@click.pass_context
def postgres(ctx: click.Context) -> None:
    """Take the data of an older PostgreSQL major to this version's: while nothing runs, from a backup that was checked.

    pg_upgrade copies the old cluster, which is only read and kept; rows are counted before and after. Then: piggybank up.

    \b
    Example:
      piggybank down
      piggybank upgrade postgres
      piggybank up --detach
    """
    if majors.upgrade_postgres(settings_of(ctx), _tell):
        click.echo("done; start it: piggybank up --detach")
    else:
        click.echo("nothing to do: the data is of this version's PostgreSQL")


def _name_of(data_dir: Path, wanted: str | None) -> str:
    """The installed version that is meant; a file is installed first. Empty: the one whose code this is."""
    if wanted is None:
        return ""
    if wanted.endswith(FILES):
        return versions.install(data_dir, Path(wanted), _tell)
    return versions.find(data_dir, wanted)


def _become(data_dir: Path, name: str, *, only_plan: bool, without_backup: bool, as_json: bool) -> NoReturn:
    """A version knows best what it needs: its schema, and which versions it may follow. In our place: nobody is above it to kill it."""
    flags = [("--plan", only_plan), ("--no-backup", without_backup), ("--json", as_json)]
    command = [str(versions.python(data_dir, name)), "-P", "-m", "piggybank", "--data-dir", str(data_dir), "upgrade"]
    sys.stdout.flush()
    os.execv(command[0], [*command, *(flag for flag, given in flags if given)])  # noqa: S606 - our own program


def _print_plan(made: work.Upgrade, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"from": made.before, "to": made.after, "migrations": made.migrations, "steps": made.plan}))
        return
    click.echo(f"from {made.before} to {made.after}")
    for line in work.lines(made):
        click.echo(line)


def _tell(line: str) -> None:
    with suppress(OSError):  # a terminal that was closed: what is under way goes on
        print(line, file=sys.stderr, flush=True)
