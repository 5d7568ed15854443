"""Write down what the installation carries, each minute, for `piggybank capacity`."""

from datetime import UTC, datetime

from piggybank.capacity import measuring, usage
from piggybank.jobs.work import Work


async def record(work: Work) -> int:
    """The last minute, once, whoever else does it, too; answers how many rows are new."""
    cache = await measuring.cache(work.settings.cache_url)
    async with work.db.write() as write:
        database = await measuring.database(write)
        return await usage.record(write, datetime.now(UTC), work.settings.phase, database, cache)


async def roll_up(work: Work) -> int:
    """Old minutes into hours; answers how many rows went."""
    async with work.db.write() as write:
        return await usage.roll_up(write, datetime.now(UTC))
