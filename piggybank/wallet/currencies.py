"""Currencies that accounts can be opened in."""

from collections.abc import Awaitable, Callable

import asyncpg
from msgspec import Struct
from sqlalchemy import text

from piggybank import errors
from piggybank.db.engines import Read

Note = Callable[[asyncpg.Connection], Awaitable[None]]  # writes down who does it, in the same transaction


class Currency(Struct, frozen=True, kw_only=True):
    """An amount of 1250 with a `minor_unit` of 2 is 12.50."""

    code: str
    minor_unit: int


_ENABLED = text("SELECT code, minor_unit FROM currencies WHERE enabled ORDER BY code")


async def enabled(read: Read) -> list[Currency]:
    """Those that the operator enabled, by code."""
    return [Currency(code=row.code, minor_unit=row.minor_unit) for row in await read.execute(_ENABLED)]


async def known(owner_url: str) -> list[tuple[str, int, bool]]:
    """Every currency: code, minor unit, whether it is enabled."""
    connection = await asyncpg.connect(owner_url)
    try:
        return [tuple(row) for row in await connection.fetch("SELECT code, minor_unit, enabled FROM currencies ORDER BY code")]
    finally:
        await connection.close()


async def switch(owner_url: str, code: str, note: Note, *, enabled: bool) -> None:
    """Enable or disable one: the owner's right, not the application's. Raises UnknownCurrency."""
    connection = await asyncpg.connect(owner_url)
    try:
        async with connection.transaction():
            if await connection.fetchval("UPDATE currencies SET enabled = $2 WHERE code = $1 RETURNING code", code, enabled) is None:
                raise errors.UnknownCurrency(code=code)
            await note(connection)
    finally:
        await connection.close()
