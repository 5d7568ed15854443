"""`piggybank partitions ..`: months of transactions, with the owner's role."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from piggybank import archive as archives
from piggybank import checks, errors, ids
from piggybank import settings as settings_file
from piggybank.archive import places
from piggybank.db import acts, locks, months
from piggybank.db import partitions as tables
from piggybank.db.engines import CONNECTION_LOST
from piggybank.db.locks import Tell
from piggybank.db.partitions import Partition
from piggybank.settings import Settings

MAX_SHOWN = 10  # findings, where an archive is refused for them
MIB = 1024**2
_T = TypeVar("_T")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
_month = click.argument("month", metavar="MONTH", type=click.DateTime(["%Y-%m"]))
_folder = click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the file goes instead of archive/ in the data folder: the only place that backups take it from.",
)
_GOES = ("helm", "railway", "ecs")  # where the data folder of a container goes with it


@click.group()
def partitions() -> None:
    """Keep transactions in months: turn that on, look at them, put old ones into files.

    Phase 3 turns months on; they stay on. Everything here is safe while the installation runs, and to run again.

    \b
    Examples:
      piggybank partitions enable
      piggybank partitions list
      piggybank partitions archive 2026-01
    """


@partitions.command()
@_as_json
@click.pass_context
def enable(context: click.Context, *, as_json: bool) -> None:
    """Turn months on: nothing is copied, no write waits longer than a moment.

    What there is stays one partition, up to the end of this month (of the next one, on its last day); from then on each month has its own.
    Long reads and dumps are waited for: it says whom it waits for, and finishes after they have ended.

    \b
    Example:
      piggybank partitions enable
    """

    async def work(here: Settings, tell: Tell) -> list[str]:
        made = await months.enable(here.owner_database_url, tell=tell)
        if made:
            await acts.record_done(here.owner_database_url, "partitions.enable", "transactions", {"made": made})
        return made

    made = _run(context, as_json, work)
    if as_json:
        click.echo(msgspec.json.encode({"made": made}).decode())
    else:
        click.echo(f"months are on; made {', '.join(made)}" if made else "months are on already")


@partitions.command()
@_as_json
@click.pass_context
def ensure(context: click.Context, *, as_json: bool) -> None:
    """Make the partitions of the next months. The worker does it each hour, where it has the owner's address.

    Exit code 1: months are on, and one that is needed soon could not be made.

    \b
    Example:
      piggybank partitions ensure
    """
    made, missing = _run(context, as_json, _ensure)
    if as_json:
        click.echo(msgspec.json.encode({"made": made, "missing": [_name(month) for month in missing]}).decode())
    else:
        click.echo(f"made {', '.join(made)}" if made else "nothing to make")
        for month in missing:
            click.echo(f"there is no partition for {_name(month)}", err=True)
    context.exit(1 if missing else 0)


@partitions.command("list")
@_as_json
@click.pass_context
def list_(context: click.Context, *, as_json: bool) -> None:
    """Print the partitions, oldest first: bounds, rows (an estimate), size, state.

    \b
      attached    its rows are in the ledger
      detaching   it is being archived; run that again
      detached    archived, and kept as a table of its own
      archived    only its file is left

    \b
    Examples:
      piggybank partitions list
      piggybank partitions list --json | jq '.items[] | select(.state == "attached")'
    """
    rows = [_shown(partition) for partition in _run(context, True, _known)]
    if as_json:
        click.echo(msgspec.json.encode({"items": rows}).decode())
        return
    table = Table("name", "from", "to", "rows", "MiB", "state", box=None, header_style="")
    for row in rows:
        size = f"{row['bytes'] / MIB:.1f}"
        table.add_row(row["name"], row["from"] or "the beginning", row["to"] or "no end", f"{row['rows']:,}", size, row["state"])
    Console().print(table)


@partitions.command()
@_month
@_folder
@_as_json
@click.pass_context
def detach(context: click.Context, month: datetime, *, folder: Path | None, as_json: bool) -> None:
    """Archive the oldest month, and keep its rows in the database as a table of its own.

    As `archive`, which drops that table when it is run afterwards.

    \b
    Example:
      piggybank partitions detach 2026-01
    """
    _archive(context, month, folder, keep_table=True, as_json=as_json)


@partitions.command()
@_month
@_folder
@_as_json
@click.pass_context
def archive(context: click.Context, month: datetime, *, folder: Path | None, as_json: bool) -> None:
    """Put the oldest month into a file, and take its rows out of the database.

    The whole ledger is verified first. The rows go into archive/transactions-MONTH.parquet in the data folder, with a manifest (rows, sums,
    SHA-256) beside it; the file is read back and compared row by row before anything is dropped. Balances, counts and `piggybank verify`
    go on from what each account carries forward. Archived rows are no longer shown: the API answers 410 `archived` and names the file.
    Copy the file to a second place: it is the only one that has these rows.

    Refused: a month that is not over for three days, one in which a payment was created that is still open, one that an older month
    precedes; and in a container of Helm or Railway a folder that goes with it.

    \b
    Examples:
      piggybank partitions archive 2026-01
      piggybank partitions archive 2026-01 --folder /mnt/archive
    """
    _archive(context, month, folder, keep_table=False, as_json=as_json)


def _archive(context: click.Context, month: datetime, named: Path | None, *, keep_table: bool, as_json: bool) -> None:
    data_dir = _settings(context).data_dir
    folder = named or data_dir / archives.FOLDER
    _check_lasts(data_dir, named)

    async def work(here: Settings, tell: Tell) -> Partition:
        await _verified(here.owner_database_url, tell)
        done = await archives.archive(here.owner_database_url, folder, month.date(), keep_table=keep_table, tell=tell)
        verb, details = "detach" if keep_table else "archive", {"month": _name(month), "rows": done.rows, "file": done.file}
        await acts.record_done(here.owner_database_url, f"partitions.{verb}", f"partition:{done.name}", details)
        return done

    partition = _run(context, as_json, work)
    if as_json:
        click.echo(msgspec.json.encode(_shown(partition)).decode())
        return
    kept = f"; its rows are still in the table {partition.name}" if partition.state == "detached" else ""
    click.echo(f"{_name(month)} is archived: {partition.rows} rows in {folder / (partition.file or '')}{kept}")
    if partition.state == "archived":
        click.echo("Copy this file and its manifest to a second place: they are the only ones that have these rows.")


def _check_lasts(data_dir: Path, named: Path | None) -> None:
    """Raises CannotProceed where the only copy would go with its container."""
    if (platform := settings_file.orchestrator(data_dir)) not in _GOES or (named is not None and places.lasts(named)):
        return
    what = "its data folder" if named is None else str(named)
    raise errors.CannotProceed(
        what=f"{what} goes with this container of {platform}, and the file would be the only one that has these rows",
        do="run it on a machine with a disk, with the same PIGGYBANK_OWNER_DATABASE_URL; or give a volume that stays: --folder",
    )


async def _verified(owner_url: str, tell: Tell) -> None:
    accounts = 0
    async for progress in checks.verify(owner_url):
        accounts += progress.accounts
        tell(f"verifying: {accounts} accounts")
        if progress.findings:
            found = "; ".join(f"{one.account_id or 'all accounts'}: {one.what}" for one in progress.findings[:MAX_SHOWN])
            raise errors.CannotProceed(what=f"the ledger does not verify, so nothing is archived: {found}", do="piggybank verify")


async def _ensure(here: Settings, tell: Tell) -> tuple[list[str], list[date]]:
    made = await tables.ensure(here.owner_database_url, tell=tell)
    async with tables.looking(here.owner_database_url) as connection:
        return made, await tables.missing(connection, datetime.now(UTC))


async def _known(here: Settings, _tell: Tell) -> list[Partition]:
    async with tables.looking(here.owner_database_url) as connection:
        return await tables.known(connection)


def _shown(partition: Partition) -> dict[str, Any]:
    return {
        "name": partition.name,
        "month": None if partition.month is None else _name(partition.month),
        "from": None if partition.lowest is None else f"{ids.time_of(partition.lowest):%Y-%m-%d}",
        "to": None if partition.below is None else f"{ids.time_of(partition.below):%Y-%m-%d}",
        "rows": partition.rows,
        "bytes": partition.bytes,
        "state": partition.state,
        "file": partition.file,
    }


def _name(month: date) -> str:
    return f"{month:%Y-%m}"


def _settings(context: click.Context) -> Settings:
    data_dir: Path | None = (context.find_root().obj or {}).get("data_dir")
    here = settings_file.load(data_dir)
    if not here.owner_database_url:
        raise errors.CannotProceed(what=f"no owner_database_url is known for {here.data_dir}", do="start it with: piggybank up; or set it")
    return here


def _run(context: click.Context, quiet: bool, work: Callable[[Settings, Tell], Coroutine[Any, Any, _T]]) -> _T:
    """Run `work` with a line that says what it is at; on a pipe the lines of waiting only."""
    here, console = _settings(context), Console(stderr=True, quiet=quiet)
    try:
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True, disable=quiet
        ) as bar:
            task = bar.add_task("looking")

            def tell(what: str) -> None:
                bar.update(task, description=what)
                if locks.WAITS in what and not quiet:
                    console.print(what, highlight=False)

            return asyncio.run(work(here, tell))
    except CONNECTION_LOST as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
