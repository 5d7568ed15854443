"""What a commit waits for, and that nobody cancels the wait.

`disk`         below phase 2: the primary's own disk
`synchronous`  from phase 2 on: a standby's disk, too
`local`        from phase 2 on, where the operator chose it: the own disk only, whatever the server asks for

PostgreSQL answers a COMMIT whose wait was cancelled with success and a warning: it is committed on the primary and perhaps nowhere else.
So what asks for that never happens here: no timeout of a driver and no cancelled task (asyncpg would send a cancel request); who gives up
drops the connection instead, and the server goes on waiting. A warning heard during COMMIT makes its outcome unknown. The role's
timeouts do not reach the wait: statement_timeout is disarmed before a transaction commits, lock_timeout and
idle_in_transaction_session_timeout count other things, and client_connection_check_interval is looked at when the wait has ended.

Without a standby nothing is written and the answer is 503: a transaction looks for one before it writes (a batch, in the statement that
locks) or before it commits (a session that wrote). A commit that wrote nothing waits for nobody, while what is answered again may have
been found on the primary alone: a batch always has written, since a row lock is written to the log, and a session can (`replays`).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from piggybank import errors
from piggybank.db.standbys import CONFIRMING
from piggybank.settings import Durability

SESSION_WAIT_S = 10  # then the outcome of a session's commit is unknown

# Of a session: 1, when it wrote nothing, since then nobody waits.
_STANDBYS_OF_SESSION = text(f"SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN 1 ELSE ({CONFIRMING}) END")
_WRITE_NOTHING = text("SELECT pg_logical_emit_message(true, 'piggybank', '')")  # a record in the log, and no row
_LOCAL = text("SET LOCAL synchronous_commit = local")

COMMIT: dict[Durability, str] = {
    "disk": "COMMIT",
    "synchronous": "COMMIT",
    "local": "SET LOCAL synchronous_commit = local; COMMIT",
}

CANCELLED_WAIT = frozenset({"01000", "57P01"})  # of the warnings that PostgreSQL gives when a wait was cancelled, in any language


class Unconfirmed(Exception):
    """The wait for a standby was cancelled: committed on the primary, and perhaps nowhere else."""


def check_standbys(count: int | None) -> None:
    """Raises `errors.NoSynchronousStandby` or `errors.StandbysNotVisible` for what CONFIRMING answered."""
    if count is None:
        raise errors.StandbysNotVisible
    if count == 0:
        raise errors.NoSynchronousStandby


async def commit(connection: asyncpg.Connection, waits_for: Durability) -> None:
    """Commit on a connection of one's own, however long it takes; raises Unconfirmed. Never cancel it: drop the connection."""
    if waits_for != "synchronous":
        await connection.execute(COMMIT[waits_for])
        return
    with _listening(connection) as cancelled:
        await connection.execute(COMMIT[waits_for])
    if cancelled:
        raise Unconfirmed


async def commit_session(session: AsyncSession, waits_for: Durability, *, replays: bool = False) -> None:
    """Commit a session; with `replays` it waits for a standby even when it wrote nothing.

    Raises `errors.NoSynchronousStandby` and `errors.StandbysNotVisible` before anything is committed; `errors.OutcomeUnknown` when the
    connection is lost during COMMIT, or no standby confirms within SESSION_WAIT_S.
    """
    if waits_for == "disk":
        return await _commit(session)
    await session.flush()
    if not session.in_transaction():  # nothing was said to the server
        return None
    if waits_for == "local":
        await session.execute(_LOCAL)
        return await _commit(session)
    if replays:
        await session.execute(_WRITE_NOTHING)
    check_standbys(await session.scalar(_STANDBYS_OF_SESSION))
    pooled = await (await session.connection()).get_raw_connection()
    connection = pooled.driver_connection
    assert connection is not None
    with _listening(connection) as cancelled:
        committing = asyncio.create_task(_commit(session))
        try:
            _, late = await asyncio.wait([committing], timeout=SESSION_WAIT_S)
        except asyncio.CancelledError:
            await _give_up(connection, committing)
            raise
        if late:
            await _give_up(connection, committing)
            raise errors.OutcomeUnknown
    committing.result()
    if cancelled:
        raise errors.OutcomeUnknown
    return None


async def _commit(session: AsyncSession) -> None:
    try:
        await session.commit()
    except sqlalchemy_errors.DBAPIError as cause:
        if cause.connection_invalidated:
            raise errors.OutcomeUnknown from cause
        raise


async def _give_up(connection: asyncpg.Connection, committing: asyncio.Task[None]) -> None:
    """Drop the connection under a COMMIT; a session must not be closed before that has ended."""
    connection.terminate()
    await asyncio.gather(committing, return_exceptions=True)


@contextmanager
def _listening(connection: asyncpg.Connection) -> Iterator[list[str]]:
    """The warnings of cancelled waits that the server gives within the block."""
    heard: list[str] = []

    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING" and message.sqlstate in CANCELLED_WAIT:
            heard.append(message.message)

    connection.add_log_listener(hear)
    try:
        yield heard
    finally:
        connection.remove_log_listener(hear)
