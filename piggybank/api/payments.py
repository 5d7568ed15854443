"""Payments: what is under way, or was."""

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.params import QueryParameter
from msgspec import Struct

from piggybank.api import acts
from piggybank.api.accounts import Limit
from piggybank.api.history import Cursor
from piggybank.api.submissions import IdempotencyKey, NoBody, balance_of, only_user, respond, submission, submit, transaction_of
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal
from piggybank.ledger import Ledger, commands
from piggybank.ledger.balances import Balance, moment
from piggybank.ledger.settlements import OPEN as OPEN_STATUSES
from piggybank.wallet import deposits, orders, pages, payments
from piggybank.wallet.history import Transaction
from piggybank.wallet.payments import Payment, PaymentPage
from piggybank.wallet.provider import Provider

Status = Annotated[
    Literal["open", "creating", "pending", "processing", "unknown", "completed", "failed", "cancelled", "returned"] | None,
    QueryParameter(description="Only payments in this state; `open` is any of the first four after it."),
]


class Completion(Struct, frozen=True, kw_only=True):
    """The payment as it ended, the row that it was posted by, and the account's balance."""

    payment: Payment
    transaction: Transaction
    balance: Balance


class Cancellation(Struct, frozen=True, kw_only=True):
    """The payment as it ended, and the account's balance without the hold."""

    payment: Payment
    balance: Balance


@get("/v1/accounts/{account_id:uuid}/payments", summary="Payments of an account", tags=["payments"])
async def list_payments(
    account_id: UUID,
    principal: Principal,
    db: Database,
    cache: Cache,
    status: Status = None,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
) -> PaymentPage:
    """Newest first, from the database."""
    return await payments.page(db, cache, account_id, only_user=only_user(principal), status=status, cursor=cursor, limit=limit)


@get("/v1/payments/{payment_id:uuid}", summary="One payment", tags=["payments"])
async def get_payment(payment_id: UUID, principal: Principal, db: Database, cache: Cache) -> Payment:
    """Ask for it until its status is one that ends it."""
    return await payments.one(db, cache, payment_id, only_user=only_user(principal))


@post("/v1/payments/{payment_id:uuid}/complete", status_code=200, summary="Complete a held withdrawal", tags=["payments"])
async def complete(
    payment_id: UUID, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, db: Database
) -> Response[Completion]:
    """The money was paid out: the withdrawal is posted and the hold released. A fact: only an ended payment refuses it."""
    payment = await _payment(db, payment_id, principal)
    command = commands.CompletePayment(
        account_id=payment.account_id,
        payment_id=payment_id,
        reference=payment.reference,
        description=payment.description,
        metadata=payment.metadata or None,
    )
    act = acts.of(principal, "payment.complete", f"payment:{payment_id}", {"amount": payment.amount})
    answer, replayed = await submit(ledger, submission(command, principal, idempotency_key, f"complete {payment_id}", NoBody(), act))
    row = transaction_of(command, answer, "withdrawal", -payment.amount)
    ended = msgspec.structs.replace(payment, status="completed", held=0, transaction_id=row.id, updated_at=moment(answer.at_ms))
    body = Completion(payment=ended, transaction=row, balance=balance_of(payment.account_id, answer))
    return respond(body, 200, replayed=replayed)


@post("/v1/payments/{payment_id:uuid}/cancel", status_code=200, summary="Cancel a payment", tags=["payments"])
async def cancel(
    payment_id: UUID, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, provider: Provider
) -> Response[Cancellation]:
    """Nothing was paid, and nothing will be: a hold is released, a checkout closed. Refused once the provider executes a payout."""
    payment = await _payment(provider.db, payment_id, principal)
    command = commands.CancelPayment(account_id=payment.account_id, payment_id=payment_id)
    act = acts.of(principal, "payment.cancel", f"payment:{payment_id}", {"amount": payment.amount})
    one = submission(command, principal, idempotency_key, f"cancel {payment_id}", NoBody(), act)
    if payment.method == "revio" and payment.kind == "deposit" and payment.status in OPEN_STATUSES:
        await deposits.cancel_checkout(provider.db, ledger, provider, await orders.get(provider.db, payment_id))
    answer, replayed = await submit(ledger, one)
    ended = msgspec.structs.replace(
        payment, status="cancelled", held=0, transaction_id=None, checkout_url=None, updated_at=moment(answer.at_ms)
    )
    return respond(Cancellation(payment=ended, balance=balance_of(payment.account_id, answer)), 200, replayed=replayed)


async def _payment(db: Database, payment_id: UUID, principal: Principal) -> Payment:
    """The payment, for what never changes of it: its account, its amount."""
    async with db.read() as read:
        return await payments.current(read, payment_id, only_user=only_user(principal))


routes = [list_payments, get_payment, complete, cancel]
