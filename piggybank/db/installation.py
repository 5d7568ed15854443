"""The row that says who this installation is: asked and changed by the command line, on a connection of its own."""

import asyncpg
from sqlalchemy import text

from piggybank import errors
from piggybank.db.engines import Current
from piggybank.settings import ProviderMode

ASK_TIMEOUT_S = 5.0
_EPOCH = text("SELECT epoch FROM installation")


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


async def epoch(read: Current) -> str:
    """Of which past the cache's entries are; empty before the first migration."""
    return await read.scalar(_EPOCH) or ""
