"""Months of `transactions`.

An id carries its time, so a range of ids is a range of time: a partition takes what was posted in one month. The first one,
`transactions_all`, takes everything from the beginning to the end of the month in which months were turned on (before that:
everything, without an end). Months are made ahead, empty, as tables of their own that are attached afterwards: for that PostgreSQL takes a
lock that no reader and no writer minds.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from uuid import UUID

import asyncpg
from msgspec import Struct, structs

from piggybank import errors, ids
from piggybank.db import locks
from piggybank.db.locks import Alone, Tell

TABLE = "transactions"
CATCH_ALL = "transactions_all"
MONTHS_AHEAD = 3  # made by the job, after the present one
ALERT_MONTHS_AHEAD = 1  # so many must be there, or somebody has to look
APPLICATION_NAME = "piggybank partitions"
BEFORE = "transactions_all_before"  # the CHECK that proves where the catch-all may end, while months are being turned on
# The server notices soon when a command that waits was killed.
_CONNECTION = {"application_name": APPLICATION_NAME, "client_connection_check_interval": "2s"}
_ANY_MONTH = re.compile(r"transactions_(\d{4})_(\d{2})")
_BOUND = re.compile(r"FROM \((?P<lowest>[^)]*)\) TO \((?P<below>[^)]*)\)")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")

State = Literal["attached", "detaching", "detached", "archived"]


class Partition(Struct, frozen=True, kw_only=True):
    """A part of `transactions`, from `lowest` (None: the beginning) on, before `below` (None: without an end); `rows` is an estimate.

    `detached`: archived, and still a table of its own; `archived`: only its file is left.
    """

    name: str
    month: date | None
    lowest: UUID | None
    below: UUID | None
    rows: int
    bytes: int
    state: State
    file: str | None = None


_LIST = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound, coalesce(i.inhdetachpending, false) AS detaching,
       CASE WHEN c.reltuples < 0 THEN pg_stat_get_live_tuples(c.oid) ELSE c.reltuples::bigint END AS rows,
       pg_total_relation_size(c.oid) AS bytes
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
  AND (i.inhparent = 'transactions'::regclass OR c.relname IN (SELECT partition FROM archived_months))
ORDER BY c.relname
"""
_ARCHIVED = "SELECT month, partition, below, rows, bytes, file FROM archived_months ORDER BY month"

_CHECK = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'transactions_all'::regclass AND conname = $1"
_CATCH_ALL_IS_THERE = "SELECT to_regclass('transactions_all') IS NOT NULL"


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to read the catalog with; either role will do."""
    connection = await asyncpg.connect(url, server_settings=_CONNECTION)
    try:
        yield connection
    finally:
        await connection.close()


# Whether months are on, as the catalog shows it: for whoever asks other things in the same statement.
MONTHS_ARE_ON = "(SELECT count(*) FROM pg_partition_tree('transactions') WHERE isleaf) > 1"


@asynccontextmanager
async def alone(owner_url: str) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection]]:
    """The owner's connection, and one to watch it with, while no other command changes partitions. Raises CannotProceed."""
    async with looking(owner_url) as connection, looking(owner_url) as watcher:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", Alone.PARTITIONS):
            raise errors.CannotProceed(what="another command changes the partitions", do="wait until it has ended")
        yield connection, watcher


async def known(connection: asyncpg.Connection) -> list[Partition]:
    """All there are and were, oldest first. Works with either role."""
    gone = {row["partition"]: row for row in await connection.fetch(_ARCHIVED)}
    found = [_of_catalog(row, gone.pop(row["name"], None)) for row in await connection.fetch(_LIST)]
    found += [
        Partition(
            name=name,
            month=row["month"],
            lowest=None,
            below=row["below"],
            rows=row["rows"],
            bytes=row["bytes"],
            state="archived",
            file=row["file"],
        )
        for name, row in gone.items()
    ]
    return _from_end_to_end(sorted(found, key=lambda partition: partition.below.int if partition.below else 2**128))


def are_on(partitions: list[Partition]) -> bool:
    """Whether months are turned on."""
    return all(partition.below is not None for partition in partitions)


async def missing(connection: asyncpg.Connection, now: datetime) -> list[date]:
    """Months, the present one and ALERT_MONTHS_AHEAD after it, whose rows no partition would take. Works with either role.

    With months half turned on these are the ones that the CHECK refuses: it has to be gone, or months on, before they begin.
    """
    ends = [partition.below for partition in await known(connection) if partition.state == "attached"]
    cutover = await begun(connection)
    if None in ends and cutover is None:
        return []
    covered_to = max(ids.time_of(end).date() for end in (*ends, cutover) if end is not None)
    first = month_of(now)
    return [month for month in (first, *_following(first, ALERT_MONTHS_AHEAD)) if month >= covered_to]


def ahead(partitions: list[Partition], now: datetime) -> int | None:
    """How many months after the present one have their partition; None where months are off."""
    ends = [partition.below for partition in partitions if partition.state == "attached"]
    if None in ends or not ends:
        return None
    last = max(ids.time_of(end).date() for end in ends if end is not None)  # the first day that no partition takes
    first = month_of(now)
    return (last.year - first.year) * 12 + last.month - first.month - 1


async def begun(connection: asyncpg.Connection) -> UUID | None:
    """The first id that the catch-all refuses while months are being turned on, or since that was interrupted; None: neither."""
    if not await connection.fetchval(_CATCH_ALL_IS_THERE):
        return None
    definition = await connection.fetchval(_CHECK, BEFORE)
    found = _ID.search(definition or "")
    return UUID(found[0]) if found else None


async def ensure(owner_url: str, *, now: datetime | None = None, tell: Tell = lambda _: None) -> list[str]:
    """Make the months up to MONTHS_AHEAD after the present one; the names of the new ones. Nothing where months are off.

    What an interrupted `enable` has left behind is taken away: at its cutover it would refuse rows. Raises CannotProceed.
    """
    async with alone(owner_url) as (connection, watcher):
        if are_on(await known(connection)):
            return await make_ahead(connection, watcher, now or datetime.now(UTC), tell)
        if await begun(connection) is not None:
            await locks.exclusively(connection, (CATCH_ALL,), (f"ALTER TABLE {CATCH_ALL} DROP CONSTRAINT {BEFORE}",), tell)
        return []


async def make_ahead(connection: asyncpg.Connection, watcher: asyncpg.Connection, now: datetime, tell: Tell) -> list[str]:
    """Months from where the last partition ends, without a gap. For who is `alone`, with months on."""
    last = max(partition.below.int for partition in await known(connection) if partition.below)
    first = ids.time_of(UUID(int=last)).date()
    until = _following(month_of(now), MONTHS_AHEAD)[-1]
    made = []
    month = first
    while month <= until:
        await _make(connection, watcher, month, tell)
        made.append(name_of(month))
        month = after(month)
    return made


async def detach(connection: asyncpg.Connection, watcher: asyncpg.Connection, partition: Partition, tell: Tell) -> None:
    """Make a partition a table of its own; it waits for readers of the whole table to end, and holds nobody up. May be repeated."""
    how = {"attached": "CONCURRENTLY", "detaching": "FINALIZE"}.get(partition.state)
    if how:
        await locks.accompanied(connection, watcher, f"ALTER TABLE {TABLE} DETACH PARTITION {partition.name} {how}", tell)


def name_of(month: date) -> str:
    """The table of a month."""
    return f"{TABLE}_{month:%Y_%m}"


def month_of(moment: datetime) -> date:
    """The month, as its first day, that a time is in, in UTC."""
    return moment.astimezone(UTC).date().replace(day=1)


def after(month: date) -> date:
    """The month that follows."""
    return (month + timedelta(days=31)).replace(day=1)


def first_id_of(month: date) -> UUID:
    """The smallest id of a month: its partition's lower bound, and the upper one of the month before."""
    return ids.first_id_at(datetime.combine(month, time(), UTC))


def is_partition(name: str) -> bool:
    """Whether a name is one of ours, and so safe in a statement."""
    return name == CATCH_ALL or _ANY_MONTH.fullmatch(name) is not None


async def _make(connection: asyncpg.Connection, watcher: asyncpg.Connection, month: date, tell: Tell) -> None:
    name, lowest, below = name_of(month), first_id_of(month), first_id_of(after(month))
    async with connection.transaction():
        await connection.execute(f"CREATE TABLE {name} (LIKE {TABLE} INCLUDING ALL)")
        attach = f"ALTER TABLE {TABLE} ATTACH PARTITION {name} FOR VALUES FROM ('{lowest}') TO ('{below}')"
        await locks.accompanied(connection, watcher, attach, tell)


def _of_catalog(row: asyncpg.Record, archived: asyncpg.Record | None) -> Partition:
    bounds = _BOUND.search(row["bound"] or "")
    lowest, below = (_bound(bounds[1]), _bound(bounds[2])) if bounds else (None, archived and archived["below"])
    state: State = "detaching" if row["detaching"] else "attached" if row["bound"] else "detached"
    return Partition(
        name=row["name"],
        month=None if below is None else month_of(ids.time_of(below) - timedelta(milliseconds=1)),
        lowest=lowest,
        below=below,
        rows=row["rows"],
        bytes=row["bytes"],
        state=state,
        file=archived and archived["file"],
    )


def _bound(expression: str) -> UUID | None:
    found = _ID.search(expression)
    return UUID(found[0]) if found else None  # MINVALUE, MAXVALUE


def _from_end_to_end(partitions: list[Partition]) -> list[Partition]:
    """What has no bound of its own any more begins where the one before it ends."""
    found: list[Partition] = []
    for partition in partitions:
        found.append(structs.replace(partition, lowest=partition.lowest or (found[-1].below if found else None)))
    return found


def _following(month: date, count: int) -> list[date]:
    found = []
    for _ in range(count):
        month = after(month)
        found.append(month)
    return found
