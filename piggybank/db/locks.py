"""Waiting for locks of PostgreSQL without making anybody else wait.

A statement that waits for an exclusive lock holds up everybody who comes after it. So it is tried only while nobody is seen to hold the
table for long, for a moment, and after a pause again; what is waited for is told every few seconds. Locks that writers do not mind are
simply waited for.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import IntEnum, unique

import asyncpg
from msgspec import Struct

from piggybank import errors

LOCK_WAIT_MS = 50  # the most that a try holds up those who write
CHANGE_TIMEOUT_MS = 2_000  # of what is done under the lock: it changes the catalog only, in a few milliseconds
LOOK_EVERY_S = 0.25  # who holds the table at two looks may hold it for long
PAUSE_S = 0.5  # after a try that failed
TRY_ANYWAY_EVERY_S = 5.0  # where there is always somebody at two looks, but never the same one for so long
TELL_EVERY_S = 3.0
WAIT_LONGEST_S = 6 * 3_600
QUERY_SHOWN_CHARACTERS = 60
WAITS = " waits for "  # in what is told

Tell = Callable[[str], None]
_Key = tuple[int | None, str]  # pid, transaction


@unique
class Alone(IntEnum):
    """Work of which one at a time goes on in a database, and the number of its advisory lock there."""

    MIGRATION = 5_077_164_913
    PARTITIONS = 5_077_164_914
    BACKUP = 5_077_164_915
    DRILL = 5_077_164_916
    FINISH = 5_077_164_917


class Holder(Struct, frozen=True, kw_only=True):
    """A transaction that has the table; what the server does not show to this role is None."""

    pid: int | None
    transaction: str
    application: str | None
    since: datetime | None
    query: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a prepared transaction"
        since = f" since {self.since:%H:%M:%S}" if self.since else ""
        return f"pid {self.pid} ({self.application or 'without a name'}){since}: {' '.join((self.query or '').split())}"


_COLUMNS = """
SELECT DISTINCT ON (l.pid, l.virtualtransaction) l.pid, l.virtualtransaction AS transaction,
       coalesce(nullif(a.application_name, ''), a.backend_type) AS application, a.xact_start AS since, left(a.query, $2) AS query
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
"""

_HOLDERS = (
    _COLUMNS
    + """
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY(SELECT to_regclass(name)::oid FROM unnest($1::text[]) AS name)
  AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
"""
)

_BLOCKERS = _COLUMNS + "WHERE l.pid = ANY(pg_blocking_pids($1))"


async def exclusively(connection: asyncpg.Connection, tables: Sequence[str], statements: Sequence[str], tell: Tell) -> None:
    """Run `statements` in one short transaction that has the first of `tables`, and what belongs to it, to itself.

    `tables`: all that are locked by it. Raises CannotProceed after WAIT_LONGEST_S.
    """
    give_up = time.monotonic() + WAIT_LONGEST_S
    watch, teller = _Watch(connection, tables), _Teller(tell)
    await watch.is_free()  # the second look tells
    while time.monotonic() < give_up:
        await asyncio.sleep(LOOK_EVERY_S)
        if await watch.is_free():
            if await _attempt(connection, tables[0], statements):
                return
            await asyncio.sleep(PAUSE_S)
        teller.waiting(tables[0], watch.steady)
    what = f"{tables[0]} could not be had for a moment in {WAIT_LONGEST_S // 3_600} h: {'; '.join(map(str, watch.steady))}"
    raise errors.CannotProceed(what=what, do="end what holds it, then run this again: what was done stays done")


async def accompanied(connection: asyncpg.Connection, watcher: asyncpg.Connection, statement: str, tell: Tell) -> None:
    """Run a statement that may wait for others without holding anybody up, and tell from another connection whom it waits for."""
    pid = connection.get_server_pid()
    teller = _Teller(tell)
    running = asyncio.ensure_future(connection.execute(statement))
    try:
        while not (await asyncio.wait({running}, timeout=LOOK_EVERY_S))[0]:
            teller.waiting(
                statement.partition("\n")[0], [_holder(row) for row in await watcher.fetch(_BLOCKERS, pid, QUERY_SHOWN_CHARACTERS)]
            )
        await running
    finally:
        running.cancel()


class _Watch:
    """Who holds some tables, look after look. `steady`: who was there at the last two."""

    def __init__(self, connection: asyncpg.Connection, tables: Sequence[str]) -> None:
        self.steady: list[Holder] = []
        self._connection = connection
        self._tables = list(tables)
        self._last: dict[_Key, Holder] = {}
        self._lasting: set[_Key] | None = None  # who was there at every look since the last time of trying anyway
        self._try_anyway = time.monotonic() + TRY_ANYWAY_EVERY_S

    async def is_free(self) -> bool:
        """Look; whether a try is worth it: nobody is steady, or all are only a while, one after the other."""
        rows = await self._connection.fetch(_HOLDERS, self._tables, QUERY_SHOWN_CHARACTERS)
        now = {(row["pid"], row["transaction"]): _holder(row) for row in rows}
        self.steady = [holder for key, holder in now.items() if key in self._last]
        self._lasting = set(now) if self._lasting is None else self._lasting & now.keys()
        self._last = now
        if not self.steady:
            return True
        if time.monotonic() < self._try_anyway:
            return False
        free, self._lasting, self._try_anyway = not self._lasting, set(now), time.monotonic() + TRY_ANYWAY_EVERY_S
        return free


class _Teller:
    """Says whom something waits for: not before it has waited a while, and not all the time."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._next = time.monotonic() + TELL_EVERY_S

    def waiting(self, what: str, holders: Sequence[Holder]) -> None:
        if holders and time.monotonic() > self._next:
            self._tell(f"{what}{WAITS}{'; '.join(map(str, holders))}")
            self._next = time.monotonic() + TELL_EVERY_S


async def _attempt(connection: asyncpg.Connection, table: str, statements: Sequence[str]) -> bool:
    try:
        async with connection.transaction():
            # nobody else moves while this commits, so it waits for no standby: it can be done again, and no row is in it
            await connection.execute("SET LOCAL synchronous_commit = local")
            # a lock_timeout would count for each partition anew
            await connection.execute(f"SET LOCAL statement_timeout = '{LOCK_WAIT_MS}ms'")
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            await connection.execute(f"SET LOCAL statement_timeout = '{CHANGE_TIMEOUT_MS}ms'")
            for statement in statements:
                await connection.execute(statement)
    except (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return False
    return True


def _holder(row: asyncpg.Record) -> Holder:
    return Holder(pid=row["pid"], transaction=row["transaction"], application=row["application"], since=row["since"], query=row["query"])
