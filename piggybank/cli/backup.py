"""`piggybank backup ..`."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import binaries, data_folder, processes
from piggybank.appliance.backups import courses, drills, keeping, making, manifests, months, schedule, secrets, targets, wal
from piggybank.appliance.backups.courses import Course
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.targets import Target
from piggybank.appliance.system_user import chosen, ours, shared
from piggybank.cli.appliance import settings_of
from piggybank.db import backups
from piggybank.settings import Settings

MIB = 1024 * 1024
STDIN = "-"


@click.group()
def backup() -> None:
    """Make, list and prove backups. Where they go is `backup_target`: a folder, ssh://.. or s3://..

    `piggybank up` makes one each day and keeps the log of every change in between; `piggybank restore` brings them back.

    \b
    Examples:
      piggybank backup key
      piggybank backup create
      piggybank backup verify --deep
    """


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done."""
    console = Console(stderr=True, quiet=quiet)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("beginning")
        yield lambda text: bar.update(task, description=text)


def recovery_key(given: str | None) -> str:
    """From a file, from standard input (`-`), or asked for where somebody can answer; empty: none."""
    if given == STDIN:
        return sys.stdin.readline().strip()
    if given:
        path = Path(given)
        if not path.is_file():
            raise errors.CannotProceed(what=f"there is no file {given}", do="--recovery-key FILE, or - to read it from standard input")
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        return lines[0].strip() if lines else ""
    if sys.stdin.isatty():
        return str(click.prompt("Recovery key (empty: without it)", default="", hide_input=True, show_default=False)).strip()
    return ""


@backup.command("key")
@click.option("--new", is_flag=True, help="Another one, although there is one: older backups still need the old key.")
@click.option("--if-none", is_flag=True, help="Where there is one, say so and end well: what an installer asks each time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def key(ctx: click.Context, *, new: bool, if_none: bool, as_json: bool) -> None:
    """Make the recovery key, and show it once. Only its public half stays here, as `backup_recipient` in piggybank.toml.

    Without it a backup has no settings and no key files, and those of earlier backups cannot be read. Keep it away from this machine.

    \b
    Examples:
      piggybank backup key
      piggybank backup key --if-none --json | jq -r .recovery_key
    """
    if new and if_none:
        raise click.UsageError("give --new or --if-none, not both")
    settings = settings_of(ctx)
    if settings.backup_recipient and if_none:
        there = {"recovery_key": None, "recipient": settings.backup_recipient}
        click.echo(json.dumps(there) if as_json else "there is a recovery key, and it is not shown again")
        return
    if settings.backup_recipient and not new:
        raise errors.CannotProceed(
            what="there is a recovery key, and it is not shown again", do="if it is lost: piggybank backup key --new, then backup create"
        )
    made = secrets.new_key()
    path = (settings.data_dir / settings_file.OPERATOR_FILE).resolve()
    if given := settings_file.in_environment("backup_recipient"):
        raise errors.CannotProceed(what=f"{given[0]} in the environment wins over the file", do="take it away, then again")
    # in a container, whose stores are elsewhere, the folder is a volume with what its neighbours keep there
    user = data_folder.prepare_folder(settings.data_dir) if settings_file.embedded_stores(settings.data_dir) else chosen()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    processes.write_file(path, settings_file.with_values(text, {"backup_recipient": made.recipient}), shared(user, 0o640), ours(user))
    if as_json:
        click.echo(json.dumps({"recovery_key": made.identity, "recipient": made.recipient}))
        return
    click.echo("Recovery key. It is shown this once: write it down, and keep it away from this machine.")
    click.echo(f"\n  {made.identity}\n")


@backup.command("create")
@click.option("--logical", is_flag=True, help="A dump of this moment (pg_dump), instead of the whole server with its log.")
@click.option("--to", "address", default="", metavar="TARGET", help="Elsewhere than `backup_target`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def create(ctx: click.Context, *, logical: bool, address: str, as_json: bool) -> None:
    """Make a backup now, while people pay. One that was cut short is none, and is taken away.

    Of a data folder's own database the whole server is copied, and any later moment can be restored; one that is elsewhere is dumped.

    \b
    Examples:
      piggybank backup create
      piggybank backup create --logical --to /mnt/usb --json | jq -r .id
    """
    settings = settings_of(ctx)
    kind: manifests.Kind = "logical" if logical else making.usual_kind(settings)
    with targets.opened(settings, address) as target, progress(quiet=as_json) as tell:
        made = making.create(settings, target, kind, tell)
        gone = keeping.prune(target, settings.backup_keep, settings.backup_keep_days, datetime.now(UTC))
        asyncio.run(backups.forget(settings.owner_database_url, gone))
    if as_json:
        said = msgspec.to_builtins(made.manifest) | {"target": made.target, "size_bytes": made.manifest.size_bytes}
        click.echo(json.dumps(said | {"warnings": made.warnings, "deleted": gone}))
        return
    took = (made.manifest.finished_at - made.manifest.started_at).total_seconds()
    click.echo(f"{made.manifest.id}: {made.manifest.size_bytes / MIB:,.1f} MiB in {made.target}, {took:.1f} s")
    if gone:
        click.echo(f"deleted, since they are older or more than are kept: {', '.join(gone)}")
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)


@backup.command("list")
@click.option("--from", "address", default="", metavar="TARGET", help="Elsewhere than `backup_target`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def list_backups(ctx: click.Context, *, address: str, as_json: bool) -> None:
    """Which good backups the target has, the newest first, and what each holds.

    \b
    Examples:
      piggybank backup list
      piggybank backup list --from s3://bank-backups/one --json
    """
    with targets.opened(settings_of(ctx), address) as target:
        found = manifests.listed(target, lambda what: click.echo(f"warning: {what}", err=True))
    if as_json:
        click.echo(json.dumps({"items": [msgspec.to_builtins(one) | {"size_bytes": one.size_bytes} for one in found]}))
        return
    for one in found:
        rows = one.facts.rows
        what = f"{rows.get('accounts', 0):,} accounts, {rows.get('transactions', 0):,} transactions, schema {one.facts.schema_revision}"
        secret = "" if one.recipient else ", WITHOUT secrets"
        click.echo(f"{one.id}  {one.size_bytes / MIB:,.1f} MiB  taken {one.taken_at:%Y-%m-%dT%H:%M:%SZ}  {what}{secret}")
    if not found:
        click.echo("no backups")


@backup.command("verify")
@click.argument("backup_id", default=manifests.LATEST)
@click.option("--from", "address", default="", metavar="TARGET", help="Elsewhere than `backup_target`.")
@click.option("--recovery-key", "key_file", metavar="FILE", help="The recovery key; -: read it from standard input. Else it is asked for.")
@click.option("--without-key", is_flag=True, help="Do not look whether the secrets open.")
@click.option("--deep", is_flag=True, help="Restore it, too, into a server that is thrown away, and verify the books there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def verify(ctx: click.Context, *, backup_id: str, address: str, key_file: str | None, without_key: bool, deep: bool, as_json: bool) -> None:
    """Read a backup to its end, compare every checksum, and open its secrets with the recovery key.

    Also whether the log since then has a hole, through every failover, up to when it can be restored, and whether archived months are at
    the target. Ends with 1 where something is damaged or missing, or the key does not open it.

    \b
    Examples:
      piggybank backup verify
      piggybank backup verify 20261124T020000Z-base --recovery-key key.txt --deep
    """
    settings = settings_of(ctx)
    with targets.opened(settings, address) as target, progress(quiet=as_json) as tell:
        manifest = manifests.choose(target, backup_id)
        for file in manifest.files:
            manifests.check(target, file, lambda size, name=file.name: tell(f"reading {name}: {size / MIB:,.0f} MiB"))  # type: ignore[misc]
        log, until = _log_since(settings, target, manifest)
        missing = months.missing(manifest.facts.months, target.names(months.FOLDER))
    opened: list[str] = []
    if manifest.recipient and not without_key:
        identity = recovery_key(key_file)
        if not identity:
            raise errors.CannotProceed(
                what="without the recovery key nobody knows whether the secrets open", do="--recovery-key FILE, or say --without-key"
            )
        with targets.opened(settings, address) as target, target.open(manifest.file(secrets.NAME).name) as source:
            opened = sorted(secrets.opened(source.read(), identity, manifest.recipient))
    found = None
    if deep:
        with targets.opened(settings, address) as target, progress(quiet=as_json) as tell:
            found = drills.drill(settings, target, manifest.id, tell)
    if as_json:
        drilled = msgspec.to_builtins(found)
        said = {"id": manifest.id, "files": len(manifest.files), "secrets": opened, "deep": drilled}
        said |= {"log_files": len(log.files), "log_hole": log.missing, "log_leads_on": not log.is_given_up}
        click.echo(json.dumps(said | {"restorable_until": until.isoformat() if until else None, "missing_months": missing}))
    else:
        click.echo(f"{manifest.id}: {len(manifest.files)} files, {manifest.size_bytes / MIB:,.1f} MiB, as they were written")
        without = "not tried" if manifest.recipient else "there are none in it: piggybank backup key"
        click.echo(f"secrets: {', '.join(opened) if opened else without}")
        if manifest.kind == "base":
            click.echo(_said_of(log, until))
        if missing:
            click.echo(f"archived months that are NOT at the target: {', '.join(missing)}")
        if found is not None:
            click.echo(f"restored and verified in {found.seconds:.1f} s: {found.said}" if found.passed else f"NOT restored: {found.said}")
    ctx.exit(0 if not log.missing and not log.is_given_up and not missing and (found is None or found.passed) else 1)


def _log_since(settings: Settings, target: Target, manifest: Manifest) -> tuple[Course, datetime | None]:
    """And when the last commit was made that can be restored; None: no program here can read that."""
    if manifest.kind != "base":
        return Course(), manifest.taken_at
    log = courses.course(target, manifest, wal.names_of(target, manifest.system))
    try:
        programs = binaries.postgres(settings.data_dir / "stores", chosen(), manifest.facts.postgres_major)
    except errors.CannotProceed:
        return log, None
    return log, max(courses.last_commit(target, log, programs) or manifest.taken_at, manifest.taken_at)


def _said_of(log: Course, until: datetime | None) -> str:
    whole = f"log since then: {len(log.files)} files"
    if log.is_given_up:
        whole = "log since then: NONE leads on from it, since it is of a history that was given up before it was made"
    elif log.missing:
        whole += f", NOT whole: {log.missing} is missing, later moments cannot be restored"
    return f"{whole}\nit can be restored up to {until:%Y-%m-%dT%H:%M:%SZ}" if until else whole


@backup.command("drill")
@click.argument("backup_id", default=manifests.LATEST)
@click.option("--from", "address", default="", metavar="TARGET", help="Elsewhere than `backup_target`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def drill(ctx: click.Context, *, backup_id: str, address: str, as_json: bool) -> None:
    """Restore the newest backup beside everything else, open it in recovery, verify it, compare it with its manifest, and delete it.

    It needs room for the database once more. `up` does this each month (`backup_drill_days`). Ends with 1 where it did not pass.

    \b
    Example:
      piggybank backup drill
    """
    settings = settings_of(ctx)
    with targets.opened(settings, address) as target, progress(quiet=as_json) as tell:
        found = drills.drill(settings, target, backup_id, tell)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(f"{found.backup_id}: {'passed' if found.passed else 'FAILED'} in {found.seconds:.1f} s: {found.said}")
    ctx.exit(0 if found.passed else 1)


@backup.command("schedule")
@click.pass_context
def run_schedule(ctx: click.Context) -> None:
    """Make backups by the settings until it is stopped: what a container runs. `piggybank up` does it by itself.

    \b
    Example:
      piggybank backup schedule
    """
    settings = settings_of(ctx)
    check_target(settings)
    telemetry.configure(settings.log_level, settings.log_format)
    for thread in schedule.Schedule(lambda: settings_of(ctx)).start():
        thread.join()


def check_target(settings: Settings) -> None:
    """Raises `errors.CannotProceed` where it cannot be reached."""
    with targets.opened(settings) as target:
        target.names("backups")
