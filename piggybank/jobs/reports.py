"""Build the daily reports, so that a summary over a year does not read a year of transactions."""

from datetime import UTC, datetime

from piggybank import reports
from piggybank.jobs.work import Work

DAYS_MAX = 400  # of one run; the next goes on in five minutes


async def build(work: Work) -> int:
    """A transaction for each day that is over and has none yet; answers how many days have one now that had none before."""
    for built in range(DAYS_MAX):
        async with work.db.write() as write:
            if not await reports.build_next_day(write, datetime.now(UTC)):
                return built
    return DAYS_MAX
