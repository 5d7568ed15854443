"""`piggybank up`, `down`, `status`, `doctor`, `migrate`, `uninstall`."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import click
from rich.console import Console
from rich.table import Table

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import change, data_folder, folder, migrating, overview, processes, reboot, supervisor, system_user, topology, web
from piggybank.capacity import phases
from piggybank.cli.moments import MOMENT
from piggybank.db import acts, schema
from piggybank.db.engines import CONNECTION_LOST
from piggybank.settings import Settings

UP_TIMEOUT_S = 180  # the first start makes a database cluster
CONFIRMED_WITHIN_S = 30  # standbys follow by then, but for one that is copied anew
DOWN_TIMEOUT_S = 180
WAIT_WITHIN_S = 300
WITHIN_MOST_S = 86_400
POLL_S = 0.1
LOG_TAIL_CHARACTERS = 2_000
PIPED_WIDTH_CHARACTERS = 180  # where no terminal says its width


@click.command()
@click.option("--detach", is_flag=True, help="Run in the background, and return when it answers.")
@click.option("--phase", type=click.IntRange(0, phases.BUILT_PHASES[-1]), help="Start as this phase, and stay so; see `piggybank phase`.")
@click.pass_context
def up(ctx: click.Context, detach: bool, phase: int | None) -> None:
    """Start everything of this data folder: stores, schema, web and workers, restarted when they die.

    In the foreground it runs until Ctrl-C or `piggybank down`, and a second one on the same folder says who runs there. With
    --detach it is safe to repeat: when all is well already it says so and ends with 0. From phase 2 on it waits for a
    replica that confirms commits, too, and says so where there is none yet: until then writes answer 503.

    \b
    Examples:
      piggybank up
      piggybank up --detach
      piggybank up --detach --data-dir /srv/second-bank
      piggybank up --detach --phase 2
    """
    settings = settings_of(ctx)
    if phase is not None:
        settings = _as_phase(settings, phase)
    if detach:
        up_detached(settings)
        return
    telemetry.configure(settings.log_level, settings.log_format)
    supervisor.Supervisor(settings).run()


@click.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Stop everything of this data folder: the web drains, workers finish, stores are closed.

    \b
    Example:
      piggybank down
    """
    settings = settings_of(ctx)
    before = [process.name for process in overview.processes_of(settings)]
    card = folder.read_card(settings.data_dir)
    if card is None and not before:
        click.echo(f"nothing runs in {settings.data_dir}")
        return
    if card is None:
        click.echo(f"stopped, left by a supervisor that was killed: {', '.join(supervisor.stop_orphans(settings))}")
        return
    os.kill(card.pid, overview.STOP_SIGNAL)
    until = time.monotonic() + DOWN_TIMEOUT_S
    while folder.runs(card):
        if time.monotonic() > until:
            raise errors.CannotProceed(
                what=f"the supervisor (pid {card.pid}) did not end within {DOWN_TIMEOUT_S} s", do=f"look into {settings.data_dir}/logs"
            )
        time.sleep(POLL_S)
    left = [process.name for process in overview.processes_of(settings)]
    click.echo(f"stopped: {', '.join(name for name in before if name not in left) or 'the supervisor'}")
    if left:
        raise errors.CannotProceed(what=f"still running: {', '.join(left)}", do="run it again: piggybank down")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """What runs, since when, on which URL. Ends with 0 when all is well, with 1 when something is not.

    \b
    Examples:
      piggybank status
      piggybank status --json | jq -r .url
    """
    found = asyncio.run(overview.look(settings_of(ctx)))
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print_status(found)
    ctx.exit(0 if found["ok"] else 1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look for what is wrong, and say what to do. Changes nothing.

    Ends with 0 when all is well, 1 with warnings only, 2 when something is broken.

    \b
    Examples:
      piggybank doctor
      piggybank doctor --json | jq '.checks[] | select(.result != "ok")'
    """
    from piggybank.appliance import doctor as checks  # its weight only when it is asked for

    settings = settings_of(ctx)
    found = asyncio.run(checks.examine(settings))
    worst = checks.worst(found)
    if as_json:
        click.echo(json.dumps({"result": worst, "data_dir": str(settings.data_dir), "checks": [check._asdict() for check in found]}))
    else:
        table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
        colours = {"ok": "green", "warning": "yellow", "broken": "bold red"}
        for check in found:
            table.add_row(check.name, f"[{colours[check.result]}]{check.result}[/]", check.found, check.do)
        _console().print(table)
    ctx.exit({"ok": 0, "warning": 1, "broken": 2}[worst])


@click.command()
@click.option("--wait", is_flag=True, help="Change nothing: wait until the schema is at this version or past it, as containers do.")
@click.option(
    "--within",
    metavar="SECONDS",
    type=click.IntRange(0, WITHIN_MOST_S),
    help=f"How long to wait; without --wait for the database to answer.  [default: {WAIT_WITHIN_S} with --wait, else 0]",
)
@click.option(
    "--restored-since", "since", type=MOMENT, metavar="TIME", help="With --wait, until it is in recovery, too (restore begin --since TIME)."
)
@click.pass_context
def migrate(ctx: click.Context, wait: bool, within: int | None, since: datetime | None) -> None:
    """Bring the database's schema to this version; safe to repeat, and from several machines at once.

    With --wait it does not migrate: it ends with 0 when somebody else has, and with 1 and the reason when nobody did in time.

    \b
    Examples:
      piggybank migrate
      piggybank migrate --within 600
      piggybank migrate --wait --within 900
    """
    if since is not None and not wait:
        raise click.UsageError("--restored-since goes with --wait")
    settings = settings_of(ctx)
    name = "database_url" if wait else "owner_database_url"
    if not getattr(settings, name):
        raise errors.CannotProceed(what=f"no {name} is known for {settings.data_dir}", do="start it: piggybank up; or set it")
    telemetry.configure(settings.log_level, "console")
    if wait:
        asyncio.run(schema.wait(settings.database_url, WAIT_WITHIN_S if within is None else within, _tell, since))
        click.echo("the schema is there")
        return
    if within:
        asyncio.run(schema.wait_for_database(settings.owner_database_url, within, _tell))
    applied = asyncio.run(migrating.bring_schema(settings))
    click.echo(f"applied: {', '.join(applied)}" if applied else "nothing to do: the schema is at this version")


@click.command()
@click.option("--purge", is_flag=True, help="Delete the data folder, too: every account and every movement.")
@click.option("--yes-really", metavar="NAME", help="With --purge, for scripts: the installation's name, instead of typing it.")
@click.pass_context
def uninstall(ctx: click.Context, purge: bool, yes_really: str | None) -> None:
    """Stop, do not come back after a reboot, and say where the data is. Only --purge and the installation's name delete it.

    Its name is its folder's: `piggybank` of /var/lib/piggybank.

    \b
    Examples:
      piggybank uninstall
      piggybank uninstall --purge
      piggybank uninstall --purge --yes-really piggybank
    """
    settings = settings_of(ctx)
    place = settings.data_dir
    if not place.is_dir():
        raise errors.CannotProceed(what=f"there is no installation in {place}", do="name its folder: --data-dir")
    if purge and not data_folder.is_ours(place):
        raise errors.CannotProceed(
            what=f"{place} does not look like an installation; nothing was changed", do="name its folder: --data-dir"
        )
    if yes_really is not None and not purge:
        raise click.UsageError("--yes-really goes with --purge")
    if purge:
        click.echo(f"This deletes {place}: every account, every movement, every key. It cannot be undone.")
        if yes_really is None:
            yes_really = click.prompt(f"Type the installation's name ({place.name}) to go on", default="", show_default=False)
        if yes_really != place.name:
            raise errors.CannotProceed(what=f"that is not its name, {place.name}; nothing was changed", do=f"the data is in {place}")
    ctx.invoke(down)
    if (unit := reboot.remove_unit(place)) is not None:
        click.echo(f"removed the systemd unit {unit}")
    elif (place / "bin" / "piggybank").exists():
        click.echo(f"If your crontab has this line, remove it (crontab -e):\n  {reboot.crontab_line(place)}")
    embedded = settings_file.embedded_stores(place)
    if "postgres" not in embedded:
        which = "database is" if embedded else "database and the Valkeys are"
        click.echo(f"The {which} yours, elsewhere: nothing of that was touched.")
    if purge:
        left = data_folder.purge(place)
        click.echo(f"deleted what is piggybank's; left, because it is not: {', '.join(left)}" if left else f"deleted {place}")
    else:
        click.echo(f"The data stays in {place}; start again with: piggybank up --data-dir {place}")
        click.echo(f"To delete it: piggybank uninstall --purge --data-dir {place}")


def settings_of(ctx: click.Context) -> Settings:
    """Those of the folder that the command line names."""
    return settings_file.load((ctx.find_root().obj or {}).get("data_dir"))


def record_act(ctx: click.Context, action: str, target: str, **details: Any) -> None:
    """An act that is done already, into the audit log: what is done stays so, also where that cannot be written."""
    settings = settings_of(ctx)  # the addresses may be others by now
    try:
        asyncio.run(acts.record_done(settings.owner_database_url, action, target, details))
    except (*CONNECTION_LOST, asyncpg.PostgresError) as cause:
        click.echo(f"piggybank: warning: it is done, but the audit log has no row of it: {cause}", err=True)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _as_phase(settings: Settings, number: int) -> Settings:
    """Write the phase down before anything starts. Raises `errors.CannotProceed` where it cannot be built here, or something else runs."""
    data_folder.prepare_folder(settings.data_dir)
    here = topology.DATABASE in settings_file.embedded_stores(settings.data_dir)
    refused = asyncio.run(change.plan(settings, number, "native" if here else "external")).plan.refused
    if refused:
        raise errors.CannotProceed(what=f"phase {number} cannot run here: {refused[0].what}", do=refused[0].do)
    if folder.read_card(settings.data_dir) is not None:
        if number in (topology.applying(settings.data_dir), topology.written_phase(settings.data_dir)):
            return settings
        raise errors.CannotProceed(what="it runs already, as another phase", do=f"piggybank phase apply {number}")
    change.write_down(settings, number)
    return settings_file.load(settings.data_dir)


def up_detached(settings: Settings) -> None:
    """Start `up` in a session of its own, unless it runs, and wait until it answers."""
    data_folder.prepare_folder(settings.data_dir)
    log = settings.data_dir / "logs" / "supervisor.log"
    if (card := folder.read_card(settings.data_dir)) is not None:
        _wait_up(settings, None, log, 0)
        _wait_confirmed(settings)
        changed = "" if card.url == settings.url else f"; the settings now say {settings.url}: piggybank down, then up"
        click.echo(f"already running: {card.url} (pid {card.pid}, since {card.since}, {settings.data_dir}){changed}")
        return
    with os.fdopen(system_user.open_file(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, processes.LOG_MODE), "ab") as output:
        said_before = output.seek(0, os.SEEK_END)
        child = subprocess.Popen(  # noqa: S603 - ourselves
            web.command(settings.data_dir, "up"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **web.environment(settings.data_dir), "HOME": os.environ.get("HOME", "/")},
        )
    _wait_up(settings, child, log, said_before)
    _wait_confirmed(settings)
    click.echo(f"running: {settings.url} (pid {child.pid}, {settings.data_dir})")
    child.returncode = 0  # it goes on without us, on purpose


def _wait_up(settings: Settings, child: subprocess.Popen[bytes] | None, log: Path, said_before: int) -> None:
    """Raises `errors.CannotProceed`, after the log's own words, when it ended or takes too long."""
    until = time.monotonic() + UP_TIMEOUT_S
    while not _is_up(settings):
        ended = folder.read_card(settings.data_dir) is None if child is None else child.poll() is not None
        if ended or time.monotonic() > until:
            click.echo(_tail(log, said_before), err=True)
            what = "it ended" if ended else f"it does not answer after {UP_TIMEOUT_S} s"
            raise errors.CannotProceed(what=what, do=f"look into {log.parent}, or: piggybank doctor")
        time.sleep(POLL_S)


def _wait_confirmed(settings: Settings) -> None:
    """Until a write finds a standby that confirms it; said where that takes long, since reads are answered meanwhile."""
    settings = settings_file.load(settings.data_dir)  # with the stores' addresses
    until = time.monotonic() + CONFIRMED_WITHIN_S
    while not asyncio.run(overview.confirms(settings)):
        if time.monotonic() > until:
            click.echo("no replica confirms a commit yet: until one does, writes answer 503; see: piggybank doctor", err=True)
            return
        time.sleep(POLL_S)


def _is_up(settings: Settings) -> bool:
    card = folder.read_card(settings.data_dir)
    return card is not None and card.state == "running" and overview.is_ready(settings)


def _tail(log: Path, start: int) -> str:
    with os.fdopen(system_user.open_file(log, os.O_RDONLY), "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")[-LOG_TAIL_CHARACTERS:]


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH_CHARACTERS)


def _print_status(found: dict[str, Any]) -> None:
    console = _console()
    console.print(
        f"[bold]{found['url']}[/]  {'ready' if found['ready'] else 'not ready'}  (piggybank {found['version']}, {found['data_dir']})"
    )
    if not found["running"] and not any(process["pid"] for process in found["processes"]) and not any(found["stores"].values()):
        console.print("not running; start it: piggybank up")
        return
    revision = found["schema"]
    if revision["revision"] is None and not found["stores"]["database"]:
        console.print("schema unknown: the database does not answer")
    else:
        behind = "" if revision["at_head"] else f", this version knows {revision['head']}: piggybank migrate"
        console.print(f"schema {revision['revision'] or 'missing'}{behind}")
    if found["provider"]["mode"] == "simulator":
        console.print(f"payments: [bold]SIMULATOR[/], no real money moves; its page: {found['provider']['simulator_url']}")
    elif found["provider"]["mode"] == "live":
        console.print("payments: live")
    if found["durability"] == "local":
        console.print("durability: [bold]LOCAL[/], a lost primary may lose answered writes")
    if found["recovering"]:
        console.print("[bold red]IN RECOVERY[/]: restored from a backup, and only read; end it: piggybank restore finish")
    if (kept := found["backups"]) is not None:
        last = f"last backup {kept['backup_at']}" if kept["backup_at"] else "[yellow]no backup[/]"
        where = f" in {kept['target']}" if kept["target"] else "; no backup_target is set"
        same = ", [yellow]on the same disk as the data[/]" if kept["same_disk"] else ""
        drill = (
            "" if kept["drill_passed"] is None else f", drill {'passed' if kept['drill_passed'] else '[red]FAILED[/]'} {kept['drill_at']}"
        )
        console.print(f"{last}{where}{same}{drill}")
    table = Table("process", "pid", "since", "", box=None, pad_edge=False)
    for process in found["processes"]:
        table.add_row(
            process["name"], str(process["pid"] or "-"), process["since"] or "-", "runs" if process["pid"] else "[red]does not run[/]"
        )
    console.print(table)
    for name, answers in found["stores"].items():
        console.print(f"{name}: {'answers' if answers else '[red]does not answer[/]'}")
    if not found["running"]:
        print("nothing supervises this folder; start it: piggybank up --detach", file=sys.stderr)
