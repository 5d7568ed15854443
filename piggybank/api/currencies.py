"""Currencies: public, and cached by whoever stands between."""

from litestar import Response, get
from msgspec import Struct

from piggybank.db.engines import Database
from piggybank.wallet import currencies
from piggybank.wallet.currencies import Currency

CACHE = "public, max-age=300, s-maxage=3600"


class CurrencyList(Struct, frozen=True, kw_only=True):
    """Always one page."""

    items: list[Currency]
    next_cursor: str | None = None


@get("/v1/currencies", summary="Currencies", tags=["accounts"])
async def list_currencies(db: Database) -> Response[CurrencyList]:
    """Those that accounts can be opened in here."""
    async with db.read() as read:
        found = await currencies.enabled(read)
    return Response(CurrencyList(items=found), headers={"Cache-Control": CACHE})


routes = [list_currencies]
