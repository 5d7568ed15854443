"""A whole copy of a database in another one: every table, in one transaction on either side, so it is there whole or not at all.

Rows go by binary COPY from one connection to the other: no file between, and no client program, so a server with TLS is like any
other (the embedded pg_dump speaks none, and the host's is of whatever version). The schema is made by our own migrations before, so
it is this version's by construction; months that were turned on since are made again with their bounds. Foreign keys and further
indexes are taken away for the copy and made again after it, which is half the time.

The source is read under SHARE locks on all tables: who writes waits, who reads does not, and what is copied is what there is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
from msgspec import Struct

from piggybank import errors
from piggybank.db.roles import quoted

LOCK_TIMEOUT_S = 30  # a write that is under way ends sooner: the application's statements have 5 s
CHUNKS_MAX = 32  # between the two connections; each of some 64 KiB
KEPT = "alembic_version"  # the migrations' own

Tell = Callable[[str, int], None]  # a table, and the bytes that have gone over

_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> $1
ORDER BY relname
"""

_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
WHERE attrelid = ('public.' || quote_ident($1))::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attname
"""

_PARTITIONS = """
SELECT c.relname AS name, p.relname AS parent, pg_get_expr(c.relpartbound, c.oid) AS bound, array_to_string(c.reloptions, ', ') AS options
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relispartition
ORDER BY c.relname
"""

# a month that was detached is a table like `transactions`, which no migration makes
_LIKE_TRANSACTIONS = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND NOT relispartition AND relname LIKE 'transactions\\_%'
"""

_FOREIGN_KEYS = """
SELECT conrelid::regclass::text AS place, quote_ident(conname) AS name, pg_get_constraintdef(oid) AS definition
FROM pg_constraint
WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND conparentid = 0
"""

_INDEXES = """
SELECT c.oid::regclass::text AS name, replace(pg_get_indexdef(c.oid), ' ON ONLY ', ' ON ') AS definition
FROM pg_index x
JOIN pg_class c ON c.oid = x.indexrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid)
ORDER BY c.relname
"""

_SEQUENCES = "SELECT quote_ident(sequencename), last_value FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL"

# What both sides must say alike: who this is, the newest transaction, and the trial balance.
_BOOKS = """
SELECT 'schema revision' AS what, version_num::text AS said FROM alembic_version
UNION ALL SELECT 'installation', id || ', epoch ' || epoch || ', ' || provider_mode FROM installation
UNION ALL SELECT 'highest transaction', max(id::text) FROM (SELECT id FROM transactions ORDER BY id DESC LIMIT 1) newest
UNION ALL SELECT 'trial balance, accounts in ' || currency,
    concat_ws(' ', 'balance', sum(balance), 'held', sum(held), 'owed', sum(owed), 'clearing', sum(clearing), 'fees', sum(fees),
              'transfers', sum(transfers), 'adjustments', sum(adjustments)) FROM accounts GROUP BY currency
UNION ALL SELECT 'trial balance, rows against ' || system_account, sum(amount)::text FROM transactions GROUP BY system_account
UNION ALL SELECT 'trial balance, ' || debit || ' to ' || credit || ' in ' || currency, sum(amount)::text
    FROM system_entries GROUP BY debit, credit, currency
"""


class Copied(Struct, frozen=True, kw_only=True):
    """What went over: rows of each table, and what both sides say in their books."""

    tables: dict[str, int]
    size_bytes: int
    books: dict[str, str]
    left_behind: list[str]  # tables that neither a migration made nor a month that was detached
    seconds: float


async def tables_of(connection: asyncpg.Connection) -> list[str]:
    """Every table whose rows are somebody's: partitions count with their table."""
    return [row[0] for row in await connection.fetch(_TABLES, KEPT)]


async def shape(source: asyncpg.Connection, target: asyncpg.Connection) -> None:
    """Give the migrated, empty target the partitions, and the detached ones, that the source has. May be repeated."""
    wanted = [tuple(row) for row in await source.fetch(_PARTITIONS)]
    have = [tuple(row) for row in await target.fetch(_PARTITIONS)]
    present = set(await tables_of(target))
    async with target.transaction():
        if wanted != have:
            for name, *_ in have:
                await target.execute(f"DROP TABLE {quoted(name)}")
            for name, parent, bound, options in wanted:
                await target.execute(
                    f"CREATE TABLE {quoted(name)} PARTITION OF {quoted(parent)} {bound}" + (f" WITH ({options})" if options else "")
                )
        for (name,) in await source.fetch(_LIKE_TRANSACTIONS):
            if name not in present:
                await target.execute(f"CREATE TABLE {quoted(name)} (LIKE transactions INCLUDING ALL)")


@asynccontextmanager
async def locked(source: asyncpg.Connection) -> AsyncIterator[None]:
    """Nobody writes to any table during this block, and all that is read in it is of one moment.

    Raises asyncpg.LockNotAvailableError after LOCK_TIMEOUT_S.
    """
    names = ", ".join(quoted(name) for name in [*await tables_of(source), KEPT])
    async with source.transaction(isolation="repeatable_read"):
        await source.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
        await source.execute(f"LOCK TABLE {names} IN SHARE MODE")  # before the first snapshot, which is the one that is kept
        yield


async def copy(source: asyncpg.Connection, target: asyncpg.Connection, tell: Tell) -> Copied:
    """Everything from `source`, which is `locked`, into `target`, which is in a transaction, too.

    What the target's tables hold is replaced. Raises `errors.CannotProceed` when the two differ afterwards.
    """
    began = time.monotonic()
    known = set(await tables_of(target))
    every_name = await tables_of(source)
    names = [name for name in every_name if name in known]
    every = ", ".join(quoted(name) for name in sorted(known))
    await target.execute(f"TRUNCATE {every}")
    again = await _bare(target)
    size_bytes = 0
    for name in names:
        size_bytes += await _copy_table(source, target, name, partial(_tell_more, tell, name, size_bytes))
    tell("indexes", size_bytes)
    for statement in again:
        await target.execute(statement)
    for name, value in await source.fetch(_SEQUENCES):
        await target.execute("SELECT setval($1::regclass, $2)", name, value)
    tell("comparing", size_bytes)
    await target.execute(f"ANALYZE {every}")  # or the first statements would be planned for empty tables
    return Copied(
        tables=await _counted_alike(source, target, names),
        size_bytes=size_bytes,
        books=await _agreed_books(source, target),
        left_behind=[name for name in every_name if name not in known],
        seconds=time.monotonic() - began,
    )


async def books(connection: asyncpg.Connection) -> dict[str, str]:
    """What this database says of itself."""
    return {row[0]: row[1] or "none" for row in await connection.fetch(_BOOKS)}


async def _bare(target: asyncpg.Connection) -> list[str]:
    """Take foreign keys and further indexes away; returns what makes them again."""
    keys, indexes = await target.fetch(_FOREIGN_KEYS), await target.fetch(_INDEXES)
    for row in keys:
        await target.execute(f"ALTER TABLE {row['place']} DROP CONSTRAINT {row['name']}")
    for row in indexes:
        await target.execute(f"DROP INDEX {row['name']}")
    return [
        *(row["definition"] for row in indexes),
        *(f"ALTER TABLE {row['place']} ADD CONSTRAINT {row['name']} {row['definition']}" for row in keys),
    ]


async def _copy_table(source: asyncpg.Connection, target: asyncpg.Connection, name: str, tell: Callable[[int], None]) -> int:
    """The bytes that went over."""
    columns = await source.fetch(_COLUMNS, name)
    if columns != await target.fetch(_COLUMNS, name):
        raise errors.CannotProceed(what=f"the table {name} has other columns there than here", do="piggybank migrate, then again")
    chunks: asyncio.Queue[bytes] = asyncio.Queue(CHUNKS_MAX)
    size_bytes = 0

    async def put(chunk: bytes) -> None:
        nonlocal size_bytes
        size_bytes += len(chunk)
        tell(size_bytes)
        await chunks.put(chunk)

    async def send() -> None:
        listed = ", ".join(quoted(column["attname"]) for column in columns)
        await source.copy_from_query(f"SELECT {listed} FROM {quoted(name)}", output=put, format="binary")
        await chunks.put(b"")

    async def arriving() -> AsyncIterator[bytes]:
        while chunk := await chunks.get():
            yield chunk

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            group.create_task(
                target.copy_to_table(name, source=arriving(), columns=[column["attname"] for column in columns], format="binary")
            )
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return size_bytes


def _tell_more(tell: Tell, name: str, before_bytes: int, more_bytes: int) -> None:
    tell(name, before_bytes + more_bytes)


async def _counted_alike(source: asyncpg.Connection, target: asyncpg.Connection, names: Sequence[str]) -> dict[str, int]:
    counts = {}
    for name in names:
        query = f"SELECT count(*) FROM {quoted(name)}"
        here, there = await source.fetchval(query), await target.fetchval(query)
        if here != there:
            raise _differ(f"rows of {name}", here, there)
        counts[name] = here
    return counts


async def _agreed_books(source: asyncpg.Connection, target: asyncpg.Connection) -> dict[str, str]:
    here, there = await books(source), await books(target)
    for what in sorted(here.keys() | there.keys()):
        if here.get(what) != there.get(what):
            raise _differ(what, here.get(what), there.get(what))
    return here


def _differ(what: str, here: Any, there: Any) -> errors.CannotProceed:
    return errors.CannotProceed(
        what=f"the copy differs from the original: {what}: {here} here, {there} there; nothing was changed",
        do="run it again; if it says so twice, keep this message and look into the other server's log",
    )
