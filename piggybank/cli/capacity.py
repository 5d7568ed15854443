"""`piggybank capacity`."""

import asyncio
from datetime import UTC, datetime

import click
import msgspec

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.capacity import outlook, usage
from piggybank.capacity.outlook import Outlook
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_DEFAULT = 30


@click.command()
@click.option("--days", type=click.IntRange(1, usage.KEPT_DAYS), default=DAYS_DEFAULT, show_default=True, help="So many days back.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts: phase, limits, first, next_phase, days.")
@click.pass_context
def capacity(context: click.Context, *, days: int, as_json: bool) -> None:
    """Compare what is carried with the limits of the phase: which comes first, when at the present growth, and which phase then.

    A worker writes down each minute what the servers say. What nobody could measure is `no data`, and growth takes 7 days of it.

    \b
    Examples:
      piggybank capacity
      piggybank capacity --days 90 --json | jq '{first, next_phase}'
    """
    settings = settings_file.load((context.find_root().obj or {}).get("data_dir"))
    if not settings.database_url:
        raise errors.CannotProceed(what=f"no database is known for {settings.data_dir}", do="start it with: piggybank up")
    try:
        found = asyncio.run(_look(settings, days))
    except errors.DatabaseUnavailable as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
    click.echo(msgspec.json.encode(found).decode() if as_json else "\n".join(outlook.lines(found)))


async def _look(settings: Settings, days: int) -> Outlook:
    db, now = Database.of(settings), datetime.now(UTC)
    try:
        async with db.read() as read:
            known = await usage.days(read, now, days)
    finally:
        await db.close()
    return outlook.outlook(settings.phase, known, now)
