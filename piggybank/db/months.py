"""Turn months on, while people pay.

Nothing is copied. A CHECK says that the one partition that there is holds nothing of after the next change of the month; once it is
validated, which readers and writers do not notice, PostgreSQL believes it, and the partition can be taken off and put back with that end
in one transaction that changes the catalog only. That transaction needs the table to itself for some milliseconds: `db/locks.py` finds
the moment. The CHECK speaks of a time at least LEAD ahead, so no row runs into it meanwhile: an id is the clock's, or one step after the
account's last one. Whatever was done when this is interrupted is found and gone on from; what is left of it alone is taken away by the job
that makes months (`partitions.ensure`).
"""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg

from piggybank import errors
from piggybank.db import locks, partitions
from piggybank.db.locks import Tell
from piggybank.db.partitions import BEFORE, CATCH_ALL, TABLE

LEAD = timedelta(hours=24)  # far more than clocks are apart, and than this may wait
assert timedelta(seconds=locks.WAIT_LONGEST_S) * 2 < LEAD

_TOO_NEW = "SELECT id FROM transactions WHERE id >= $1 ORDER BY id DESC LIMIT 1"
_IS_VALID = "SELECT convalidated FROM pg_constraint WHERE conrelid = 'transactions_all'::regclass AND conname = $1"


async def enable(owner_url: str, *, now: datetime | None = None, tell: Tell = lambda _: None) -> list[str]:
    """Turn months on and make the next ones; the names of the new partitions (none: all was done before).

    Safe while the installation runs, and to repeat. Raises CannotProceed.
    """
    now = now or datetime.now(UTC)
    async with partitions.alone(owner_url) as (connection, watcher):
        if not partitions.are_on(await partitions.known(connection)):
            await _give_an_end(connection, watcher, _change_after(now + LEAD), tell)
        return await partitions.make_ahead(connection, watcher, now, tell)


def _change_after(moment: datetime) -> date:
    """The first day of a month, not before `moment`."""
    month = partitions.month_of(moment)
    return month if month == moment.date() and moment.time() == moment.min.time() else partitions.after(month)


async def _give_an_end(connection: asyncpg.Connection, watcher: asyncpg.Connection, month: date, tell: Tell) -> None:
    cutover = partitions.first_id_of(month)
    if (row_id := await connection.fetchval(_TOO_NEW, cutover)) is not None:
        raise _too_new(row_id, month)
    if (before := await partitions.begun(connection)) not in (None, cutover):
        tell(f"an earlier attempt was interrupted ({before}): beginning anew")
        await locks.exclusively(connection, (CATCH_ALL,), (f"ALTER TABLE {CATCH_ALL} DROP CONSTRAINT {BEFORE}",), tell)
        before = None
    if before is None:
        check = f"ALTER TABLE {CATCH_ALL} ADD CONSTRAINT {BEFORE} CHECK (id < '{cutover}') NOT VALID"
        await locks.exclusively(connection, (CATCH_ALL,), (check,), tell)
    if not await connection.fetchval(_IS_VALID, BEFORE):
        tell(f"looking through {CATCH_ALL} for rows of {month:%Y-%m} and later")
        try:
            await locks.accompanied(connection, watcher, f"ALTER TABLE {CATCH_ALL} VALIDATE CONSTRAINT {BEFORE}", tell)
        except asyncpg.CheckViolationError as cause:
            await locks.exclusively(connection, (CATCH_ALL,), (f"ALTER TABLE {CATCH_ALL} DROP CONSTRAINT {BEFORE}",), tell)
            raise _too_new(await connection.fetchval(_TOO_NEW, cutover), month) from cause
    tell(f"giving {CATCH_ALL} its end: {month:%Y-%m}")
    change = (
        f"ALTER TABLE {TABLE} DETACH PARTITION {CATCH_ALL}",
        f"ALTER TABLE {TABLE} ATTACH PARTITION {CATCH_ALL} FOR VALUES FROM (MINVALUE) TO ('{cutover}')",
        f"ALTER TABLE {CATCH_ALL} DROP CONSTRAINT {BEFORE}",
    )
    await locks.exclusively(connection, (TABLE, CATCH_ALL), change, tell)


def _too_new(row_id: UUID | None, month: date) -> errors.CannotProceed:
    what = f"transaction {row_id} bears a time of {month:%Y-%m} or later: a clock was far ahead"
    return errors.CannotProceed(what=what, do=f"look at the clocks (piggybank doctor); try again in {month:%Y-%m}")
