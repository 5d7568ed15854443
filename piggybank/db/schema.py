"""Waiting for a database, and for the schema that somebody else brings: what containers do before they serve."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg

from piggybank import errors
from piggybank.db import recovery, revisions

ASK_TIMEOUT_S = 10.0
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 30.0  # why it still waits, so that a log shows it
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

Tell = Callable[[str], None]


async def missing(url: str, restored_since: datetime | None = None) -> str:
    """Why this version cannot work with the database yet; empty: its schema is at this version's head, or past it. Either role may ask.

    `restored_since`: and it was put into recovery after that, since another tool restores it.
    """
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            found = await revisions.current(url)
            begun = found is None or restored_since is None or await _is_begun(url, restored_since)
    except asyncpg.InsufficientPrivilegeError:
        return "this role has no rights on the schema yet"
    except AWAY as cause:
        return f"the database does not answer: {cause or type(cause).__name__}"
    if found is None:
        return "the database has no schema yet"
    head = revisions.head()
    if found < head:
        return f"the schema is at {found}, and this version needs {head}"
    return "" if begun else "it was restored, and is not in recovery yet"


async def _is_begun(url: str, since: datetime) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT to_regclass('public.restores')") is not None and await recovery.begun_since(
            connection, since
        )
    finally:
        await connection.close()


async def wait(url: str, within_s: float, tell: Tell, restored_since: datetime | None = None) -> None:
    """Until nothing is missing; changes nothing. Raises `errors.CannotProceed`."""
    why = await _until_empty(lambda: missing(url, restored_since), within_s, tell)
    if why:
        do = "see that the migration ran (`piggybank migrate`, the Job `migrate`) and what its log says"
        raise errors.CannotProceed(what=f"waited {within_s:.0f} s for the schema: {why}", do=do)


async def wait_for_database(url: str, within_s: float, tell: Tell) -> None:
    """Until the database takes connections; raises `errors.CannotProceed`."""
    why = await _until_empty(lambda: _away(url), within_s, tell)
    if why:
        do = "look at owner_database_url and whether that server runs"
        raise errors.CannotProceed(what=f"waited {within_s:.0f} s for the database: {why}", do=do)


async def _away(url: str) -> str:
    try:
        connection = await asyncpg.connect(url, timeout=ASK_TIMEOUT_S)
    except AWAY as cause:
        return f"it does not answer: {cause or type(cause).__name__}"
    await connection.close()
    return ""


async def _until_empty(ask: Callable[[], Awaitable[str]], within_s: float, tell: Tell) -> str:
    """Ask until the answer is empty or the time is over; the last answer."""
    began, told, told_at = time.monotonic(), "", float("-inf")
    while why := await ask():
        now = time.monotonic()
        if now - began >= within_s:
            return why
        if why != told or now - told_at >= TELL_EVERY_S:
            tell(f"waiting, {now - began:.0f} of {within_s:.0f} s: {why}")
            told, told_at = why, now
        await asyncio.sleep(LOOK_EVERY_S)
    return ""
