"""Payments as the jobs see them: what to ask the provider for, whose turn it is, and when to look again.

`due_at` and `attempts` are the jobs' own bookkeeping: they change without the ledger, under SKIP LOCKED, so that no batch waits.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import TextClause, text

from piggybank import errors, ids
from piggybank.db.engines import Database
from piggybank.ledger.commands import PaymentKind, PaymentStatus
from piggybank.revio import Person
from piggybank.revio.payouts import Order
from piggybank.settings import ProviderMode

LEASE_S = 120.0  # longer than a step takes, with its calls
PAUSE_FIRST_S = 5.0  # doubled with every attempt
PAUSE_LONGEST_S = 3_600.0


class Payment(Struct, frozen=True, kw_only=True):
    """A payment with all that the provider is told of it."""

    id: UUID
    account_id: UUID
    kind: PaymentKind
    status: PaymentStatus
    provider: ProviderMode
    provider_id: str | None
    provider_url: str | None
    amount: int
    currency: str
    destination: dict[str, str] | None
    description: str | None
    return_url: str | None
    expires_at: datetime | None
    attempts: int
    failure: str | None
    purchase_id: str | None  # of the deposit that a refund gives back
    refund_of: UUID | None
    email: str | None
    name: str | None

    def person(self, fallback_email: str) -> Person:
        """Who it is for. Raises InvalidRequest without any address."""
        email = self.email or fallback_email
        if not email:
            raise errors.InvalidRequest(
                field="email", message="is needed: the account's owner has none, and PIGGYBANK_REVIO_FALLBACK_EMAIL is not set"
            )
        return Person(email=email, full_name=self.name)

    def order(self, fallback_email: str) -> Order:
        """What a payout driver is told."""
        return Order(
            reference=str(self.id),
            amount=self.amount,
            currency=self.currency,
            description=self.description or "Payout",
            person=self.person(fallback_email),
            destination=self.destination or {},
        )


_GET = text("""
SELECT p.id, p.account_id, p.kind, p.status, p.provider, p.provider_id, p.provider_url, p.amount, a.currency,
       CAST(p.destination AS text) AS destination, p.description, p.return_url, p.expires_at, p.attempts, p.failure,
       purchase.provider_id AS purchase_id, p.refund_of, u.email, u.name
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
JOIN users u ON u.id = a.user_id
LEFT JOIN payments purchase ON purchase.bucket = p.bucket AND purchase.id = p.refund_of
WHERE p.bucket = :bucket AND p.id = :id AND p.method = 'revio'
""")

# What is to be sent: money that goes out and that nobody was asked to move yet.
TO_SEND = text("""
WITH due AS (
    SELECT id, bucket
    FROM payments
    WHERE status IN ('creating', 'pending') AND method = 'revio' AND kind IN ('withdrawal', 'refund') AND provider = :provider
      AND (due_at IS NULL OR due_at <= :now)
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE payments
SET due_at = :until, attempts = attempts + 1
FROM due
WHERE payments.id = due.id AND payments.bucket = due.bucket
RETURNING payments.id
""")

# What has been quiet for a while: to be asked about.
QUIET = text("""
WITH due AS (
    SELECT id, bucket
    FROM payments
    WHERE status IN ('creating', 'pending', 'processing', 'unknown') AND method = 'revio' AND provider = :provider AND id < :older
      AND (kind = 'deposit' OR status IN ('processing', 'unknown'))
      AND updated_at < :quiet_since AND (due_at IS NULL OR due_at <= :now)
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE payments
SET due_at = :until, attempts = attempts + 1
FROM due
WHERE payments.id = due.id AND payments.bucket = due.bucket
RETURNING payments.id
""")

_PUT_OFF = text("UPDATE payments SET due_at = :until WHERE bucket = :bucket AND id = :id")


async def together(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them to their end, whatever becomes of one; then raises the first failure."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def get(db: Database, payment_id: UUID) -> Payment:
    """From the primary. Raises NotFound."""
    async with db.write() as read:
        row = (await read.execute(_GET, {"bucket": ids.bucket_of(payment_id), "id": payment_id})).one_or_none()
    if row is None:
        raise errors.NotFound(payment_id=str(payment_id))
    return Payment(**{**row._asdict(), "destination": msgspec.json.decode(row.destination) if row.destination else None})


async def claim(db: Database, which: TextClause, mode: ProviderMode, *, limit: int, quiet_s: float = 0.0) -> Sequence[UUID]:
    """Payments that are this process's for LEASE_S seconds, oldest first."""
    now = datetime.now(UTC)
    quiet_since = now - timedelta(seconds=quiet_s)
    given: dict[str, Any] = {"provider": mode, "now": now, "limit": limit, "until": now + timedelta(seconds=LEASE_S)}
    if which is QUIET:
        given |= {"older": ids.first_id_at(quiet_since), "quiet_since": quiet_since}
    async with db.write() as write:
        return sorted(row.id for row in await write.execute(which, given))


async def hand_back(db: Database, payment: Payment) -> None:
    """Whoever comes next may have it at once."""
    async with db.write() as write:
        await write.execute(_PUT_OFF, {"bucket": ids.bucket_of(payment.id), "id": payment.id, "until": datetime.now(UTC)})


async def put_off(db: Database, payment: Payment) -> None:
    """Not before a while, longer with every attempt; a checkout is looked at when its time is over."""
    now = datetime.now(UTC)
    until = now + timedelta(seconds=min(PAUSE_FIRST_S * 2 ** min(payment.attempts, 20), PAUSE_LONGEST_S))
    if payment.expires_at is not None and payment.expires_at > now:
        until = min(until, payment.expires_at + timedelta(seconds=PAUSE_FIRST_S))
    async with db.write() as write:
        given = {"bucket": ids.bucket_of(payment.id), "id": payment.id, "until": until}
        await write.execute(_PUT_OFF, given)
