"""Payments: what is under way, or was. Reading them; they change only through the ledger."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import errors, ids
from piggybank.cache import Cache
from piggybank.db.engines import Current, Database
from piggybank.ledger import balances
from piggybank.settings import ProviderMode
from piggybank.wallet import pages

STATUSES = ("creating", "pending", "processing", "unknown", "completed", "failed", "cancelled", "returned")
OPEN = "open"  # a filter: the first four
Which = Literal["unknown", "open", "differing"]  # lists for operators


class Payment(Struct, frozen=True, kw_only=True):
    """`held` is what it reserves now; `transaction_id` the row that it was posted by, once it was.

    With method `revio`: `provider` says whether the money is real (`live`) or play (`simulator`), `paid` what was really paid, which
    may differ from `amount`, `refunded` and `charged_back` what of it went back, `failure` the provider's reason.
    """

    id: UUID
    account_id: UUID
    kind: str
    method: str
    status: str
    amount: int
    currency: str
    held: int
    transaction_id: UUID | None
    destination: dict[str, str] | None
    reference: str | None
    description: str | None
    metadata: dict[str, str]
    created_at: datetime
    updated_at: datetime
    provider: ProviderMode | None = None
    provider_id: str | None = None
    checkout_url: str | None = None
    expires_at: datetime | None = None
    paid: int = 0
    refunded: int = 0
    charged_back: int = 0
    refund_of: UUID | None = None
    failure: str | None = None


class PaymentPage(Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: list[Payment]
    next_cursor: str | None


# The account comes along without a payment, so that "no payments" and "not your account" differ. Its open ones are a filter, not
# the partial index, which is for those who look for open payments of everybody.
_PAGE = text("""
SELECT a.version, a.currency, p.id, p.account_id, p.kind, p.method, p.status, p.amount, p.held, p.transaction_id,
       CAST(p.destination AS text) AS destination, p.reference, p.description, CAST(p.metadata AS text) AS metadata, p.updated_at,
       p.provider, p.provider_id, p.provider_url, p.expires_at, p.paid, p.refunded, p.charged_back, p.refund_of, p.failure
FROM accounts a
LEFT JOIN LATERAL (
    SELECT *
    FROM payments
    WHERE account_id = a.id AND id < :below
      AND (CAST(:status AS text) IS NULL OR status = :status
           OR (:status = 'open' AND status IN ('creating', 'pending', 'processing', 'unknown')))
    ORDER BY id DESC
    LIMIT :limit
) p ON true
WHERE a.bucket = :bucket AND a.id = :account_id AND (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
ORDER BY p.id DESC
""")

_ONE = text("""
SELECT a.version, a.currency, p.id, p.account_id, p.kind, p.method, p.status, p.amount, p.held, p.transaction_id,
       CAST(p.destination AS text) AS destination, p.reference, p.description, CAST(p.metadata AS text) AS metadata, p.updated_at,
       p.provider, p.provider_id, p.provider_url, p.expires_at, p.paid, p.refunded, p.charged_back, p.refund_of, p.failure
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.bucket = :bucket AND p.id = :id AND (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
""")


# For operators, each by its own partial index: those that nobody can tell about, those that are under way, those that were paid otherwise
# than meant.
_NEEDS_A_LOOK: dict[Which, str] = {
    "unknown": "p.status = 'unknown'",
    "open": "p.status IN ('creating', 'pending', 'processing', 'unknown')",
    "differing": "p.status = 'completed' AND p.paid <> p.amount",
}
_LISTED = {
    which: text(f"""
SELECT a.currency, p.id, p.account_id, p.kind, p.method, p.status, p.amount, p.held, p.transaction_id,
       CAST(p.destination AS text) AS destination, p.reference, p.description, CAST(p.metadata AS text) AS metadata, p.updated_at,
       p.provider, p.provider_id, p.provider_url, p.expires_at, p.paid, p.refunded, p.charged_back, p.refund_of, p.failure
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.method = 'revio' AND p.id < :below AND {condition}
ORDER BY p.id DESC
LIMIT :limit
""")
    for which, condition in _NEEDS_A_LOOK.items()
}


async def page(
    db: Database,
    store: Cache,
    account_id: UUID,
    *,
    only_user: UUID | None = None,
    status: str | None = None,
    cursor: str | None = None,
    limit: int = pages.LIMIT_DEFAULT,
) -> PaymentPage:
    """A page of an account's payments; `status` is one of STATUSES or OPEN. Raises NotFound, InvalidRequest."""
    given = {
        "bucket": ids.bucket_of(account_id),
        "account_id": account_id,
        "only_user": only_user,
        "status": status,
        "below": pages.LAST_ID if cursor is None else pages.last_id(cursor, "payments", account_id, status),
        "limit": limit + 1,
    }
    rows = await balances.newest(db, store, account_id, balances.rows_of(_PAGE, given))
    if not rows:
        raise errors.NotFound(account_id=str(account_id))
    items = [_payment(row) for row in rows[:limit] if row.id is not None]
    more = len(rows) > limit
    return PaymentPage(items=items, next_cursor=pages.cursor_after(items[-1].id, "payments", account_id, status) if more else None)


async def listed(read: Current, which: Which, *, cursor: str | None = None, limit: int = pages.LIMIT_DEFAULT) -> PaymentPage:
    """A page of the provider's payments of everybody. Raises InvalidRequest."""
    below = pages.LAST_ID if cursor is None else pages.last_id(cursor, "ops-payments", which)
    rows = (await read.execute(_LISTED[which], {"below": below, "limit": limit + 1})).all()
    items = [_payment(row) for row in rows[:limit]]
    return PaymentPage(items=items, next_cursor=pages.cursor_after(items[-1].id, "ops-payments", which) if len(rows) > limit else None)


async def one(db: Database, store: Cache, payment_id: UUID, *, only_user: UUID | None = None) -> Payment:
    """One payment; raises NotFound."""
    question = balances.rows_of(_ONE, {"bucket": ids.bucket_of(payment_id), "id": payment_id, "only_user": only_user})
    rows = await db.ask(question)
    if rows and db.has_replicas:  # only now is it known whose version it must be of
        floor = await store.floor(balances.KIND, str(rows[0].account_id))
        if floor is None or rows[0].version < floor:
            rows = await db.ask(question, None)
    if not rows:
        raise errors.NotFound(payment_id=str(payment_id))
    return _payment(rows[0])


async def current(read: Current, payment_id: UUID, *, only_user: UUID | None = None) -> Payment:
    """The same, as it is on the primary: for what is decided by it."""
    row = (await read.execute(_ONE, {"bucket": ids.bucket_of(payment_id), "id": payment_id, "only_user": only_user})).one_or_none()
    if row is None:
        raise errors.NotFound(payment_id=str(payment_id))
    return _payment(row)


def _payment(row: Row[Any]) -> Payment:
    return Payment(
        id=row.id,
        account_id=row.account_id,
        kind=row.kind,
        method=row.method,
        status=row.status,
        amount=row.amount,
        currency=row.currency,
        held=row.held,
        transaction_id=row.transaction_id,
        destination=msgspec.json.decode(row.destination) if row.destination else None,
        reference=row.reference,
        description=row.description,
        metadata=msgspec.json.decode(row.metadata) if row.metadata else {},
        created_at=ids.time_of(row.id),
        updated_at=row.updated_at,
        provider=row.provider,
        provider_id=row.provider_id,
        checkout_url=row.provider_url if row.kind == "deposit" and row.status in ("creating", "pending", "processing") else None,
        expires_at=row.expires_at,
        paid=row.paid,
        refunded=row.refunded,
        charged_back=row.charged_back,
        refund_of=row.refund_of,
        failure=row.failure,
    )
