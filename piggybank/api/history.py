"""What was posted: an account's transactions, one of them, the legs of a transfer."""

from typing import Annotated, Literal
from uuid import UUID

from litestar import get
from litestar.params import QueryParameter
from msgspec import Struct

from piggybank.api.accounts import Limit, MinVersion
from piggybank.api.fields import REFERENCE_MAX_CHARACTERS
from piggybank.api.moments import From, To, moment
from piggybank.api.submissions import only_user
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal
from piggybank.wallet import history, pages
from piggybank.wallet.history import Filter, Transaction, TransactionPage

CURSOR_MAX_CHARACTERS = 128

Cursor = Annotated[str | None, QueryParameter(max_length=CURSOR_MAX_CHARACTERS, description="`next_cursor` of the page before.")]
Kind = Literal[
    "deposit",
    "withdrawal",
    "transfer_in",
    "transfer_out",
    "refund",
    "chargeback",
    "chargeback_reversal",
    "payout_return",
    "reversal",
    "adjustment",
    "fee",
]
ReferenceFilter = Annotated[
    str | None, QueryParameter(min_length=1, max_length=REFERENCE_MAX_CHARACTERS, description="Only with exactly this reference.")
]


class TransferLegs(Struct, frozen=True, kw_only=True):
    """A transfer: the row of the account that sent, and the row of the one that received, as far as the caller may see them."""

    id: UUID
    legs: list[Transaction]


@get("/v1/accounts/{account_id:uuid}/transactions", summary="Transactions of an account", tags=["history"], fast_path=True)
async def list_transactions(
    account_id: UUID,
    principal: Principal,
    db: Database,
    cache: Cache,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
    since: From = None,
    until: To = None,
    kind: Kind | None = None,
    reference: ReferenceFilter = None,
    min_version: MinVersion = 0,
) -> TransactionPage:
    """Newest first. `total` counts all of the account's transactions, exactly; it is null when the list is filtered."""
    return await history.page(
        db,
        cache,
        account_id,
        Filter(since=moment("from", since), until=moment("to", until), kind=kind, reference=reference),
        only_user=only_user(principal),
        cursor=cursor,
        limit=limit,
        min_version=min_version,
    )


@get("/v1/transactions/{transaction_id:uuid}", summary="One transaction", tags=["history"])
async def get_transaction(transaction_id: UUID, principal: Principal, db: Database) -> Transaction:
    """It never changes: what undoes it is a transaction of its own."""
    return await history.one(db, transaction_id, only_user=only_user(principal))


@get("/v1/transfers/{transfer_id:uuid}", summary="One transfer", tags=["history"])
async def get_transfer(transfer_id: UUID, principal: Principal, db: Database) -> TransferLegs:
    """Both sides of it; of somebody else's account nothing is shown."""
    return TransferLegs(id=transfer_id, legs=await history.legs(db, transfer_id, only_user=only_user(principal)))


routes = [list_transactions, get_transaction, get_transfer]
