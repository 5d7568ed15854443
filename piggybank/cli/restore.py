"""`piggybank restore BACKUP ..` and `piggybank restore finish`."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

import click
import msgspec
from rich.console import Console

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import folder, overview, topology
from piggybank.appliance.backups import databases, finishing, manifests, restoring, targets
from piggybank.appliance.backups.opening import Restored
from piggybank.appliance.store_files import APPLICATION_ROLE
from piggybank.cli.appliance import settings_of
from piggybank.cli.backup import STDIN, progress, recovery_key
from piggybank.cli.moments import MOMENT
from piggybank.db import recovery, roles
from piggybank.db.engines import Database
from piggybank.settings import Settings
from piggybank.wallet import lost
from piggybank.wallet.lost import Lost

UNKNOWN_SHOWN_MAX = 50
TO_HELP = "A new data folder, or the owner's address of an empty database; -: read it from standard input."
BACKUP = "BACKUP"  # what the command without a name is called in the help


class _Restore(click.Group):
    """A word that is no command is a backup."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            return BACKUP, self.commands[BACKUP], args
        return super().resolve_command(ctx, args)


@click.group(cls=_Restore, subcommand_metavar="BACKUP [OPTIONS] | begin | finish | lost")
def restore() -> None:
    """Bring a backup back: `latest`, or an id of `piggybank backup list`, into a NEW folder or database.

    It opens in recovery: reads are answered, everything that would write or pay is refused, until `restore finish` has asked the
    payment provider what happened since.

    \b
    Examples:
      piggybank restore latest --to /var/lib/piggybank-restored
      piggybank restore latest --to /srv/bank --at 2026-11-24T09:30:00Z --recovery-key key.txt
      piggybank restore latest --from s3://bank-backups/one --to - < address.txt    # postgresql://owner:password@db/piggybank
      piggybank restore latest --in-place
      piggybank restore finish --data-dir /var/lib/piggybank-restored
    """


def _typed(_ctx: click.Context, _parameter: click.Parameter, place: str) -> str:
    """From standard input where it is `-`: a password in an argument stands in every list of processes."""
    if place != STDIN:
        return place
    if not (given := sys.stdin.readline().strip()):
        raise click.UsageError("standard input has no address")
    return given


@restore.command(BACKUP)
@click.argument("backup_id")
@click.option("--to", "place", default="", metavar="FOLDER|URL", callback=_typed, help=TO_HELP)
@click.option("--in-place", is_flag=True, help="Over this installation, which is stopped; its database is kept beside the new one.")
@click.option("--name", default="", help="With --in-place: the folder's name, or the database's that is elsewhere, instead of being asked.")
@click.option("--from", "address", default="", metavar="TARGET", help="Elsewhere than `backup_target`.")
@click.option("--at", type=MOMENT, metavar="TIME", help="The moment to restore, like 2026-11-24T09:30:00Z. Else the newest.")
@click.option("--recovery-key", "key_file", metavar="FILE", help="Restores settings and key files, too; -: read it from standard input.")
@click.option("--without-key", is_flag=True, help="Do not ask for the recovery key.")
@click.option("--until-hole", is_flag=True, help="Where the archived log has a hole: restore what was before it, and lose what came after.")
@click.option("--application-role", default=APPLICATION_ROLE, show_default=True, help="With a URL: the role that the application has.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def bring_back(
    ctx: click.Context,
    *,
    backup_id: str,
    place: str,
    in_place: bool,
    name: str,
    address: str,
    at: datetime | None,
    key_file: str | None,
    without_key: bool,
    until_hole: bool,
    application_role: str,
    as_json: bool,
) -> None:
    """Restore a backup into a new folder or database (see `piggybank restore --help`)."""
    if bool(place) == in_place:
        raise click.UsageError("give either --to FOLDER|URL or --in-place")
    settings = settings_of(ctx)
    is_elsewhere = in_place and topology.DATABASE not in settings_file.embedded_stores(settings.data_dir)
    is_url = place.startswith(("postgresql://", "postgres://"))
    if is_elsewhere:
        _check_typed(name, unquote(urlsplit(settings.owner_database_url).path.removeprefix("/")), "database", "under another name")
    elif in_place:
        _check_stopped(settings, name)
    identity = "" if is_url or is_elsewhere or without_key else recovery_key(key_file)
    if at is not None and (is_url or is_elsewhere):
        raise errors.CannotProceed(what="a database gets a logical backup, which holds one moment", do="leave --at away")
    where = settings.data_dir if in_place else Path(place).expanduser().absolute()
    with targets.opened(settings, address) as target, progress(quiet=as_json) as tell:
        manifest = manifests.choose(target, backup_id, at)
        if is_elsewhere:
            role = roles.role_of(settings.database_url)
            restored = databases.over_database(target, manifest, settings.owner_database_url, role, settings.data_dir, tell)
        elif is_url:
            restored = databases.into_database(target, manifest, place, application_role, tell)
        else:
            into = restoring.in_place if in_place else restoring.into_folder
            restored = into(target, manifest, where, at, identity, tell, until_hole=until_hole)
    if as_json:
        click.echo(msgspec.json.encode(restored).decode())
        return
    _say(restored)
    if is_url:
        click.echo("It is in recovery. Give its addresses to the installation (database_url, owner_database_url), start that, then:")
        click.echo("  piggybank restore finish")
    elif is_elsewhere:
        click.echo("It is in recovery: only reads are answered. Start everything again, then:\n  piggybank restore finish")
    else:
        _say_how_to_go_on(restored, in_place=in_place)


def _say(restored: Restored) -> None:
    click.echo(f"{restored.backup_id} is restored into {restored.place}, as of {restored.point:%Y-%m-%dT%H:%M:%SZ}")
    click.echo(f"{restored.accounts} accounts, {restored.transactions} transactions: everything fits")
    if restored.missing_months:
        click.echo(
            f"warning: archived months that are not here: {', '.join(restored.missing_months)}: balances fit, those rows are gone", err=True
        )
    if restored.left_out:
        click.echo(f"Not restored, since they lead to the old database: {', '.join(restored.left_out)} (comments in piggybank.toml there)")
    if restored.kept:
        click.echo(f"The database that was here is kept as {restored.kept}: delete it when all is well")


def _say_how_to_go_on(restored: Restored, *, in_place: bool) -> None:
    """A folder has the phase of its settings: its own, or those of the backup."""
    phase = ""
    if restored.secrets:
        click.echo(f"Its settings are those of the backup: phase {restored.phase}. What was set after that is not in them.")
    elif not in_place:
        click.echo("Settings and key files are NOT restored: that takes --recovery-key. Write them into piggybank.toml there.")
        if restored.phase:
            click.echo(f"It was in phase {restored.phase} when the backup was made.")
            phase = f" --phase {restored.phase}"
    click.echo("It is in recovery: only reads are answered. Stop the old installation for good, then:")
    click.echo(f"  piggybank up --detach{phase} --data-dir {restored.place}\n  piggybank restore finish --data-dir {restored.place}")


@restore.command("begin")
@click.option(
    "--point",
    type=MOMENT,
    metavar="TIME",
    help="Up to there the database knows everything, like 2026-11-24T09:30:00Z. Else the last heartbeat of the worker that is in it.",
)
@click.option("--by", "tool", default="another tool", show_default=True, help="What restored it: is kept with it.")
@click.option(
    "--since", type=MOMENT, metavar="TIME", help="When this restore was asked for: one that was begun after that is left as it is."
)
@click.pass_context
def begin(ctx: click.Context, *, point: datetime | None, tool: str, since: datetime | None) -> None:
    """Put a database into recovery that another tool restored: CloudNativePG, a snapshot at a cloud, pg_restore.

    Before web and workers are started: they would send payouts of which this database does not know that they were sent. Ends the
    sessions of the application. `piggybank restore finish` ends it. With --since it is safe to repeat, also after that.

    \b
    Examples:
      piggybank restore begin --point 2026-11-24T09:30:00Z --by cloudnative-pg
      piggybank restore begin --since 2026-11-24T10:00:00Z
    """
    settings = settings_of(ctx)
    for moment, do in (
        (point, "give the moment up to which the restored database knows everything"),
        (since, "give the moment at which its restore was asked for"),
    ):
        if moment is not None and moment > datetime.now(UTC):
            raise errors.CannotProceed(what=f"{moment:%Y-%m-%dT%H:%M:%SZ} is in the future", do=do)
    if not asyncio.run(_begin(settings, point, tool, since)):
        click.echo("nothing to do: this restore was begun already")
        return
    click.echo("It is in recovery: only reads are answered. Start what serves it, then: piggybank restore finish")


async def _begin(settings: Settings, point: datetime | None, tool: str, since: datetime | None) -> bool:
    owner, role = settings.owner_database_url, roles.role_of(settings.database_url)
    if since is not None and await recovery.goes_on(owner, role, since):
        return False
    await recovery.stand_down(owner, role, point or await recovery.newest_moment(owner), tool)
    return True


@restore.command("finish")
@click.option("--accept-unexplained", is_flag=True, help="Go on although the provider pays out, or owes less than, what we can explain.")
@click.option("--old-copy", is_flag=True, help="Go on with this copy although another one was finished: what that one wrote is given up.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def finish(ctx: click.Context, *, accept_unexplained: bool, old_copy: bool, as_json: bool) -> None:
    """Ask the provider what happened since the restore point, post it, and let writes and payouts go on.

    Events, the statement and every payment that had not ended are looked at; what nobody can tell becomes `unknown`, for two operators.
    Nothing is ever sent twice: a request that comes again with its Idempotency-Key finds what the provider did for it. Safe to repeat.
    The backup target is this copy's from then on: an old installation that still runs notices that within a minute or so, and is only
    read. Do not rely on it: stop that one first.

    \b
    Examples:
      piggybank restore finish
      piggybank restore finish --json | jq .found.unknown
    """
    settings = settings_of(ctx)
    telemetry.configure("error", "console")  # to standard error: what a machine reads is on the other
    with Console(stderr=True, quiet=as_json).status("beginning") as status:
        done = finishing.run(settings, status.update, accept_unexplained=accept_unexplained, old_copy=old_copy)
    if as_json:
        click.echo(json.dumps({"finished": True, "was_in_recovery": done is not None} | (msgspec.to_builtins(done) if done else {})))
        return
    if done is None:
        click.echo("nothing to do: it is not in recovery")
        return
    click.echo(f"restored from {done.restore.backup_id}, as of {done.restore.point:%Y-%m-%dT%H:%M:%SZ}")
    if (found := done.found) is None:
        click.echo("no payment ever went through a provider: nobody had to be asked")
    else:
        states = ", ".join(f"{count} {state}" for state, count in found.states.items()) or "none"
        click.echo(f"{found.events} events applied; payments that had not ended: {states}")
        if found.reconciliation is not None:
            run = found.reconciliation
            click.echo(f"statement: {run.rows} rows, {run.mended} posted just now, {run.items_count} differences ({run.id})")
        for one in found.lost[:UNKNOWN_SHOWN_MAX]:
            click.echo(
                f"made in the time that was lost: {_described(one)}: known again when it is asked for again (piggybank restore lost)"
            )
        for payment_id in found.unknown[:UNKNOWN_SHOWN_MAX]:
            click.echo(f"unknown: {payment_id}: two operators resolve it (POST /v1/ops/payments/{payment_id}/resolve)")
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo("writes and payouts go on. Make a backup now: piggybank backup create")


@restore.command("lost")
@click.option("--settled", metavar="REFERENCE", type=click.UUID, help="People have dealt with this one: nothing is taken for it any more.")
@click.option("--by", default="", help="With --settled: who says so.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def lost_payments(ctx: click.Context, *, settled: UUID | None, by: str, as_json: bool) -> None:
    """What the provider did in the time that a restore lost, and that nobody has asked for again.

    A deposit here is money that a customer paid and has not got: find out at the provider whose it is, record it as a direct deposit, and
    say --settled. A payout or a refund here is done; --settled lets another one of the same kind and amount go out without a question.

    \b
    Examples:
      piggybank restore lost
      piggybank restore lost --settled 01932b4e-5c7a-7d21-8f00-3d6f0a1b2c3d --by thandi
    """
    settings = settings_of(ctx)
    if settled is not None and not by:
        raise click.UsageError("--settled needs --by NAME")
    found, done = asyncio.run(_waiting(settings, settled, by))
    if settled is not None and not done:
        raise errors.CannotProceed(what=f"{settled} does not wait", do="piggybank restore lost")
    if as_json:
        click.echo(json.dumps({"items": msgspec.to_builtins(found)}))
        return
    for one in found:
        click.echo(f"{one.reference}  {_described(one)}")
    if not found:
        click.echo("nothing waits")


async def _waiting(settings: Settings, settled: UUID | None, by: str) -> tuple[list[Lost], bool]:
    db = Database(settings.database_url, waits_for=settings.waits_for)
    try:
        done = settled is not None and await lost.settle(db, settled, by)
        return await lost.waiting(db), done
    finally:
        await db.close()


def _described(one: Lost) -> str:
    return f"{one.kind} of {one.amount} {one.currency}, {one.provider_id} at the provider"


def _check_stopped(settings: Settings, name: str) -> None:
    """Raises `errors.CannotProceed` where it runs, or its name is not typed."""
    place = settings.data_dir
    if not (place / "stores").is_dir():
        raise errors.CannotProceed(what=f"there is no installation in {place}", do="name its folder: --data-dir")
    if folder.read_card(place) is not None or overview.processes_of(settings):
        raise errors.CannotProceed(what=f"{place} runs", do="piggybank down, then again")
    _check_typed(name, place.name, "folder", "in stores/")


def _check_typed(name: str, expected: str, what: str, where: str) -> None:
    """Raises `errors.CannotProceed` unless the person named what is about to be replaced."""
    if not name:
        click.echo(f"This puts a backup in the place of the database of the {what} {expected}. That one is kept beside it, {where}.")
        name = click.prompt(f"Type the {what}'s name ({expected}) to go on", default="", show_default=False)
    if name != expected:
        raise errors.CannotProceed(what="the name was not typed; nothing was changed", do=f"the {what} is {expected}: --name")
