"""Archive the oldest month: its rows go into a file, what they add up to stays.

1. A file is written, and proven by reading it back beside the table (`files.py`).
2. What each account and payment carries forward is written with the mark that the month is archived, in one transaction (`carry.py`).
3. The partition is detached, which waits for readers and holds nobody up; its rows are counted once more; it is dropped.

Each step is found done when this is run again, and gone on from. Payments and effects are never archived, so a refund of an archived
deposit posts as ever, and nothing can happen twice.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg

from piggybank import errors, ids
from piggybank.archive import carry, files
from piggybank.archive.files import Manifest
from piggybank.db import locks, partitions
from piggybank.db.archived import FOLDER as FOLDER
from piggybank.db.locks import Tell
from piggybank.db.partitions import Partition

SETTLED_AFTER = timedelta(days=3)  # a month is over: clocks, late commits, the nightly comparison with the provider
_FIRST = UUID(int=0)

_OPEN_PAYMENT = """
SELECT id FROM payments
WHERE id >= $1 AND id < $2 AND status IN ('creating', 'pending', 'processing', 'unknown')
ORDER BY id
LIMIT 1
"""
_REPORTS_THROUGH = "SELECT reports_through FROM installation"
# Transfers of the month, by their own ids; a leg of the last moment may lie in the next month.
_TORN_TRANSFER = """
SELECT transfer_id FROM transactions
WHERE id >= $1 AND id < $3 AND transfer_id >= $1 AND transfer_id < $2
GROUP BY transfer_id
HAVING count(*) <> 2 OR sum(amount) <> 0
LIMIT 1
"""
_ARCHIVED = "SELECT rows, amount, sha256 FROM archived_months WHERE partition = $1"


async def archive(
    owner_url: str, folder: Path, month: date, *, keep_table: bool = False, now: datetime | None = None, tell: Tell = lambda _: None
) -> Partition:
    """Archive a month into a file in `folder`; `keep_table`: it stays in the database as a table of its own. What has become of it.

    Safe while the installation runs, and to repeat. Raises CannotProceed.
    """
    async with partitions.alone(owner_url) as (connection, watcher):
        partition = await _of_month(connection, month)
        if partition.state == "archived":
            return partition
        if partition.file is None:
            await _check(connection, partition, now or datetime.now(UTC))
            manifest = await _into_file(connection, folder, partition, tell)
            await carry.forward(connection, partition, manifest)
            tell(f"{manifest.rows} rows are in {folder / manifest.file}; taking {partition.name} out")
        await partitions.detach(connection, watcher, partition, tell)
        await _count_again(connection, partition)
        if not keep_table:
            await locks.accompanied(connection, watcher, f"DROP TABLE {partition.name}", tell)
        return await _of_month(connection, month)


async def _of_month(connection: asyncpg.Connection, month: date) -> Partition:
    known = await partitions.known(connection)
    if not partitions.are_on(known):
        raise errors.CannotProceed(what="months are off: all transactions are in one partition", do="piggybank partitions enable")
    found = next((partition for partition in known if partition.month == month), None)
    if found is None:
        there = ", ".join(f"{partition.month:%Y-%m}" for partition in known)
        raise errors.CannotProceed(what=f"there is no partition of {month:%Y-%m}", do=f"there are: {there}")
    older = next((partition for partition in known if partition.file is None), found)
    if older.month != month and found.file is None:
        what = f"{older.month:%Y-%m} is older and not archived yet"
        raise errors.CannotProceed(what=what, do=f"piggybank partitions archive {older.month:%Y-%m}")
    return found


async def _check(connection: asyncpg.Connection, partition: Partition, now: datetime) -> None:
    """Whether a month may be archived. Raises CannotProceed."""
    assert partition.below is not None, "months are on"
    bounds, name = (partition.lowest or _FIRST, partition.below), f"{partition.month:%Y-%m}"
    free_at = ids.time_of(partition.below) + SETTLED_AFTER
    if now < free_at:
        raise errors.CannotProceed(what=f"{name} is not over for {SETTLED_AFTER.days} days yet", do=f"try again on {free_at:%Y-%m-%d}")
    if (payment_id := await connection.fetchval(_OPEN_PAYMENT, *bounds)) is not None:
        what = f"payment {payment_id}, created in {name}, is still open"
        raise errors.CannotProceed(what=what, do="let it end, cancel it, or have two operators resolve it")
    through, last_day = await connection.fetchval(_REPORTS_THROUGH), ids.time_of(partition.below).date() - timedelta(days=1)
    if through is None or through < last_day:
        what = f"the daily reports reach to {through or 'nothing'}, {name} ends on {last_day}"
        raise errors.CannotProceed(what=what, do="wait for the worker, which builds them every five minutes (piggybank status)")
    if (transfer_id := await connection.fetchval(_TORN_TRANSFER, *bounds, ids.first_id_at(free_at))) is not None:
        raise errors.CannotProceed(what=f"transfer {transfer_id} is torn", do="look with: piggybank verify")


async def _into_file(connection: asyncpg.Connection, folder: Path, partition: Partition, tell: Tell) -> Manifest:
    assert partition.below is not None, "months are on"
    tell(f"writing about {partition.rows} rows of {partition.name}")
    manifest = await files.write(connection, folder, f"{partition.month:%Y-%m}", partition.lowest, partition.below, tell)
    if (manifest.lowest, manifest.below) != (partition.lowest, partition.below):
        raise errors.CannotProceed(what=f"{folder / manifest.file} has other bounds", do="move it away, then run this again")
    await files.prove(connection, folder, manifest, tell)
    return manifest


async def _count_again(connection: asyncpg.Connection, partition: Partition) -> None:
    """Nobody reaches a detached table any more: what it holds now is what goes. Raises CannotProceed."""
    assert partitions.is_partition(partition.name)
    expected = await connection.fetchrow(_ARCHIVED, partition.name)
    rows, amount = await connection.fetchrow(f"SELECT count(*), coalesce(sum(amount), 0) FROM {partition.name}")
    if (rows, amount) != (expected["rows"], expected["amount"]):
        what = f"{partition.name} holds {rows} rows, sum {amount}; archived were {expected['rows']}, sum {expected['amount']}"
        raise errors.CannotProceed(what=f"{what}. It is kept, detached", do="look for rows that are not in the file")
