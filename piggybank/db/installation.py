"""The row that says who this installation is: asked and changed by the command line, on a connection of its own.

Its epoch is of which past the cache's entries are. Processes look once a second, so it cannot change for all of them at one moment. With
CLOSED before it nothing is read from the cache nor put into it, and a change only drops what is there: some may be that far and others
not yet, and nobody is shown what is older than what he was answered. To take another cache, or another epoch: close, wait until everybody
knows, change, wait, open.
"""

import asyncio
from typing import NamedTuple
from uuid import uuid4

import asyncpg
from sqlalchemy import text

from piggybank import errors
from piggybank.db import recovery
from piggybank.db.engines import Current
from piggybank.settings import ProviderMode

ASK_TIMEOUT_S = 5.0
CLOSED = "+"
EVERYBODY_KNOWS_S = 3.0  # three looks
# After a failover the only standby may be the old primary, which comes back when the cache is open: that commit must not wait for it.
# What may be lost with the primary is that the cache was opened, and a closed one is only slower.
_WAITS_FOR_NOBODY = "SET LOCAL synchronous_commit = local"
_EPOCH = text(f"SELECT epoch, {recovery.RECOVERING} AS recovering FROM installation")


async def stored_mode(url: str) -> ProviderMode | None:
    """What the database says; None where it cannot be asked, or has no such column yet."""
    try:
        connection = await asyncpg.connect(url, timeout=ASK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return None
    try:
        mode: ProviderMode | None = await connection.fetchval("SELECT provider_mode FROM installation")
        return mode
    except asyncpg.PostgresError:
        return None
    finally:
        await connection.close()


async def switch_mode(owner_url: str, mode: ProviderMode) -> bool:
    """Choose another provider; False where it is this one. Raises CannotProceed once there are payments of the other one.

    The database keeps it by itself, too: a payment refers to the mode that it was made in.
    """
    connection = await asyncpg.connect(owner_url)
    try:
        if await connection.fetchval("SELECT provider_mode FROM installation") == mode:
            return False
        try:
            await connection.execute("UPDATE installation SET provider_mode = $1", mode)
        except asyncpg.ForeignKeyViolationError as cause:
            other = "simulator" if mode == "live" else "live"
            count = await connection.fetchval("SELECT count(*) FROM payments WHERE provider IS NOT NULL")
            raise errors.CannotProceed(
                what=f"this database holds {count} {other} payment(s): play and real money share no book; nothing was changed",
                do=f"make another installation for {mode} payments: installer/install.sh --data-dir DIR --port N --provider-mode {mode}",
            ) from cause
        return True
    finally:
        await connection.close()


class Epoch(NamedTuple):
    """Empty before the first migration."""

    epoch: str
    closed: bool
    recovering: bool  # it was restored, and takes no writes before `piggybank restore finish`


def epoch_of(stored: str, *, recovering: bool = False) -> Epoch:
    """What the row's `epoch` says."""
    return Epoch(stored.removeprefix(CLOSED), stored.startswith(CLOSED), recovering)


async def epoch(read: Current) -> Epoch:
    """Of which past the cache's entries are."""
    row = (await read.execute(_EPOCH)).one_or_none()
    return epoch_of(row.epoch, recovering=row.recovering) if row else epoch_of("")


async def close_cache(owner_url: str, *, waits: bool = True) -> None:
    """Nobody reads from the cache any more when this returns. `waits`: for a standby, too; else whoever makes one the primary closes it."""
    first = "" if waits else _WAITS_FOR_NOBODY
    await _set_epoch(owner_url, "UPDATE installation SET epoch = $1 || epoch WHERE left(epoch, 1) <> $1", CLOSED, first=first)


async def open_cache(owner_url: str) -> None:
    """Begin anew with the cache: what was there before is never read again. Returns at once where it is open."""
    connection = await asyncpg.connect(owner_url, timeout=ASK_TIMEOUT_S)
    try:
        closed = await connection.fetchval("SELECT left(epoch, 1) = $1 FROM installation", CLOSED)
    finally:
        await connection.close()
    if closed:
        fresh = uuid4().hex[:8]
        await _set_epoch(owner_url, "UPDATE installation SET epoch = $1", CLOSED + fresh, first=_WAITS_FOR_NOBODY)
        await _set_epoch(owner_url, "UPDATE installation SET epoch = $1", fresh, first=_WAITS_FOR_NOBODY, wait_s=0)


async def _set_epoch(owner_url: str, statement: str, value: str, *, first: str = "", wait_s: float = EVERYBODY_KNOWS_S) -> None:
    connection = await asyncpg.connect(owner_url, timeout=ASK_TIMEOUT_S)
    try:
        async with connection.transaction():
            if first:
                await connection.execute(first)
            await connection.execute(statement, value)
    finally:
        await connection.close()
    await asyncio.sleep(wait_s)
