"""`piggybank capacity`."""

import asyncio
from datetime import UTC, datetime

import click
import msgspec

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.capacity import forecast as forecasts
from piggybank.capacity import outlook, usage
from piggybank.capacity.usage import Day
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_DEFAULT = 30
FORECAST_DAYS = 90


@click.command()
@click.option(
    "--days", type=click.IntRange(1, usage.KEPT_DAYS), help=f"So many days back.  [default: {DAYS_DEFAULT}; --forecast: {FORECAST_DAYS}]"
)
@click.option("--forecast", is_flag=True, help="When each limit is reached, with its uncertainty, and how long each phase carries it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts: phase, limits, first, next_phase, days.")
@click.pass_context
def capacity(context: click.Context, *, days: int | None, forecast: bool, as_json: bool) -> None:
    """Compare what is carried with the limits of the phase: which comes first, when at the present growth, and which phase then.

    A worker writes down each minute what the servers say. What nobody could measure is `no data`, and growth takes 7 days of it.

    \b
    Examples:
      piggybank capacity
      piggybank capacity --days 90 --json | jq '{first, next_phase}'
      piggybank capacity --forecast
      piggybank capacity --forecast --json | jq '.phases[0].reached.earliest'
    """
    settings = settings_file.load((context.find_root().obj or {}).get("data_dir"))
    if not settings.database_url:
        raise errors.CannotProceed(what=f"no database is known for {settings.data_dir}", do="start it with: piggybank up")
    now = datetime.now(UTC)
    try:
        known = asyncio.run(_history(settings, now, days or (FORECAST_DAYS if forecast else DAYS_DEFAULT)))
    except errors.DatabaseUnavailable as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
    if forecast:
        expected = forecasts.forecast(settings.phase, known, now)
        click.echo(msgspec.json.encode(expected).decode() if as_json else "\n".join(forecasts.lines(expected)))
    else:
        found = outlook.outlook(settings.phase, known, now)
        click.echo(msgspec.json.encode(found).decode() if as_json else "\n".join(outlook.lines(found)))


async def _history(settings: Settings, now: datetime, days: int) -> list[Day]:
    db = Database.of(settings)
    try:
        async with db.read() as read:
            return await usage.days(read, now, days)
    finally:
        await db.close()
