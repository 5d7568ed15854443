"""Currencies that accounts can be opened in."""

from msgspec import Struct
from sqlalchemy import text

from piggybank.db.engines import Read


class Currency(Struct, frozen=True, kw_only=True):
    """An amount of 1250 with a `minor_unit` of 2 is 12.50."""

    code: str
    minor_unit: int


_ENABLED = text("SELECT code, minor_unit FROM currencies WHERE enabled ORDER BY code")


async def enabled(read: Read) -> list[Currency]:
    """Those that the operator enabled, by code."""
    return [Currency(code=row.code, minor_unit=row.minor_unit) for row in await read.execute(_ENABLED)]
