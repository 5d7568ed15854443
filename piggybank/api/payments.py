"""Payments: what is under way, or was."""

from typing import Annotated, Literal
from uuid import UUID

from litestar import get
from litestar.params import Parameter

from piggybank.api.accounts import Limit
from piggybank.api.history import Cursor
from piggybank.api.submissions import only_user
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal
from piggybank.wallet import pages, payments
from piggybank.wallet.payments import Payment, PaymentPage

Status = Annotated[
    Literal["open", "creating", "pending", "processing", "unknown", "completed", "failed", "cancelled", "returned"] | None,
    Parameter(description="Only payments in this state; `open` is any of the first four after it."),
]


@get("/v1/accounts/{account_id:uuid}/payments", summary="Payments of an account", tags=["payments"])
async def list_payments(
    account_id: UUID,
    principal: Principal,
    db: Database,
    status: Status = None,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
) -> PaymentPage:
    """Newest first, from the database."""
    async with db.read() as read:
        return await payments.page(read, account_id, only_user=only_user(principal), status=status, cursor=cursor, limit=limit)


@get("/v1/payments/{payment_id:uuid}", summary="One payment", tags=["payments"])
async def get_payment(payment_id: UUID, principal: Principal, db: Database) -> Payment:
    """Ask for it until its status is one that ends it."""
    async with db.read() as read:
        return await payments.one(read, payment_id, only_user=only_user(principal))


routes = [list_payments, get_payment]
