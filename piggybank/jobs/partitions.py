"""Make the next months' partitions, where months are on. Each hour, so that it is done soon after a worker has started."""

from datetime import UTC, datetime

import structlog

from piggybank import errors
from piggybank.db import partitions
from piggybank.jobs.work import Work

_log = structlog.get_logger()


async def ensure(work: Work) -> int:
    """With the owner's address: make what is missing. Always: look, and say it loudly. Answers how many were made."""
    made: list[str] = []
    if work.settings.owner_database_url:
        try:
            made = await partitions.ensure(work.settings.owner_database_url)
        except errors.CannotProceed as busy:
            _log.info("partitions_not_made", because=str(busy))
    async with partitions.looking(work.settings.database_url) as connection:
        missing = await partitions.missing(connection, datetime.now(UTC))
    if missing:
        months = ", ".join(f"{month:%Y-%m}" for month in missing)
        _log.critical("partitions_missing", months=months, do="piggybank partitions ensure: rows of these months would be refused")
    return len(made)
