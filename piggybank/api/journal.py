"""Everybody's transactions, for operators who look for one."""

from typing import Annotated

from litestar import get
from litestar.params import QueryParameter

from piggybank import money
from piggybank.api.accounts import Limit
from piggybank.api.history import Cursor, Kind, ReferenceFilter
from piggybank.api.moments import From, To, moment
from piggybank.db.engines import Database
from piggybank.wallet import journal, pages
from piggybank.wallet.journal import Filter, JournalPage

Least = Annotated[
    int | None, QueryParameter(name="min_amount", ge=1, le=money.MAX_BALANCE, description="In minor units, without the sign: at least.")
]
Most = Annotated[int | None, QueryParameter(name="max_amount", ge=1, le=money.MAX_BALANCE, description="The same: at most.")]
CurrencyFilter = Annotated[str | None, QueryParameter(pattern="^[A-Z]{3}$", max_length=3, description="Only accounts in this currency.")]


@get("/v1/ops/transactions", tags=["operations"], summary="Transactions of everybody")
async def list_journal(
    db: Database,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
    since: From = None,
    until: To = None,
    kind: Kind | None = None,
    currency: CurrencyFilter = None,
    reference: ReferenceFilter = None,
    least: Least = None,
    most: Most = None,
) -> JournalPage:
    """Newest first. A page looks at 20,000 rows at most: go on by its cursor, whatever it found."""
    wanted = Filter(
        since=moment("from", since), until=moment("to", until), kind=kind, currency=currency, reference=reference, least=least, most=most
    )
    async with db.read() as read:
        return await journal.page(read, wanted, cursor=cursor, limit=limit)


routes = [list_journal]
