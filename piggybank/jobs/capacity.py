"""Write down what the installation carries, each minute, for `piggybank capacity`."""

from datetime import UTC, datetime

from piggybank.capacity import figures, measuring, usage, watching
from piggybank.jobs.work import Work


async def record(work: Work) -> int:
    """The last minute, once, whoever else does it, too; answers how many rows are new."""
    cache = await measuring.cache(work.settings.cache_url)
    queue, unknown = await figures.of_queue(work.settings.queue_url)
    async with work.db.write(lasting=False) as write:
        database = await measuring.database(write)
        stores, not_told = figures.of_stores(database, cache)
        ledger, not_known = await figures.look(write, work.settings)
        looked = usage.Looked(database=database, cache=cache, figures=stores | queue | ledger, unknown=unknown | not_told | not_known)
        return await usage.record(write, datetime.now(UTC), work.settings.phase, looked)


async def roll_up(work: Work) -> int:
    """Old minutes into hours, and alerts that ended long ago away; answers how many rows went."""
    now = datetime.now(UTC)
    async with work.db.write() as write:
        return await usage.roll_up(write, now) + await watching.prune(write, now)
