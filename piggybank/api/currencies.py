"""Currencies: public, and cached by whoever stands between."""

from typing import Any

from litestar import Request, Response, get
from msgspec import Struct

from piggybank.api import caching
from piggybank.db.engines import Database
from piggybank.wallet import currencies
from piggybank.wallet.currencies import Currency


class CurrencyList(Struct, frozen=True, kw_only=True):
    """Always one page."""

    items: list[Currency]
    next_cursor: str | None = None


@get("/v1/currencies", summary="Currencies", tags=["accounts"])
async def list_currencies(request: Request[Any, Any, Any], db: Database) -> Response[CurrencyList]:
    """Those that accounts can be opened in here."""
    async with db.read() as read:
        found = await currencies.enabled(read)
    return caching.revalidated(request, CurrencyList(items=found), caching.METADATA)


routes = [list_currencies]
