"""Payments that the provider carried out in the time that a restored database has lost: known again when they are asked for again.

The restored database has no row of them. But the provider tells our reference, which is the payment's id, and an id carries a mark of
the idempotency key that it was made for (`ids.mark_of`). So a client that sends its request again, with the same key, gets a payment
with the same mark, and that one is not sent a second time: it takes the place of the one that was lost.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog
from msgspec import Struct
from sqlalchemy import text

from piggybank import ids
from piggybank.db.engines import Database
from piggybank.revio.statements import Line
from piggybank.settings import ProviderMode

KINDS = {"purchase": "deposit", "payout": "withdrawal"}  # of a statement's lines, that a payment of ours makes

_log = structlog.get_logger()

_FIND = text("""
SELECT reference, provider_id, amount, currency, payment_id FROM lost_payments
WHERE mark = :mark AND kind = :kind AND provider = :provider AND (payment_id IS NULL OR payment_id = :payment_id)
ORDER BY reference
""")
_TAKE = text("UPDATE lost_payments SET payment_id = :payment_id WHERE reference = :reference AND payment_id IS NULL")
_KEEP = text("""
INSERT INTO lost_payments (reference, mark, provider, kind, provider_id, amount, currency, found_at)
VALUES (:reference, :mark, :provider, :kind, :provider_id, :amount, :currency, :now)
ON CONFLICT (reference) DO NOTHING
""")
_KNOWN = text("SELECT id FROM payments WHERE bucket = ANY(CAST(:buckets AS smallint[])) AND id = ANY(CAST(:ids AS uuid[]))")


class Lost(Struct, frozen=True, kw_only=True):
    """What the provider carried out under `reference`, an id that we gave and do not know any more."""

    reference: UUID
    provider_id: str
    amount: int
    currency: str
    payment_id: UUID | None = None


async def find(db: Database, mode: ProviderMode, kind: str, payment_id: UUID) -> Lost | None:
    """The lost payment that was made for the same idempotency key as this one, and for whose place nobody else has come."""
    given = {"mark": ids.mark_in(payment_id), "kind": kind, "provider": mode, "payment_id": payment_id}
    async with db.write() as read:  # the primary's: it decides whether money is sent
        for row in await read.execute(_FIND, given):
            if ids.bucket_of(row.reference) == ids.bucket_of(payment_id) and row.reference != payment_id:
                return Lost(**row._asdict())
    return None


async def take(db: Database, lost: Lost, payment_id: UUID) -> None:
    """From now on this payment is the one that was lost."""
    _log.warning("payment_was_made_before_the_restore", payment=str(payment_id), reference=str(lost.reference))
    async with db.write() as write:
        await write.execute(_TAKE, {"payment_id": payment_id, "reference": lost.reference})


async def keep(db: Database, mode: ProviderMode, lines: Sequence[Line]) -> list[Lost]:
    """Those of the statement's lines that an id of ours stands in and that no payment has; written down, once."""
    found = {}
    for line in lines:
        reference = _reference(line)
        if reference is not None:
            found[reference] = line
    given = {"ids": list(found), "buckets": list({ids.bucket_of(reference) for reference in found})}
    async with db.write() as write:
        known = {row.id for row in await write.execute(_KNOWN, given)} if found else set()
        lost = {reference: line for reference, line in found.items() if reference not in known}
        rows = [
            {
                "reference": reference,
                "mark": ids.mark_in(reference),
                "provider": mode,
                "kind": KINDS[line.type],
                "provider_id": line.id,
                "amount": line.amount,
                "currency": line.currency,
                "now": datetime.now(UTC),
            }
            for reference, line in lost.items()
        ]
        if rows:
            await write.execute(_KEEP, rows)
    return [Lost(reference=reference, provider_id=line.id, amount=line.amount, currency=line.currency) for reference, line in lost.items()]


def _reference(line: Line) -> UUID | None:
    if line.type not in KINDS or line.status == "UNPAID":
        return None
    try:
        return UUID(line.reference)
    except ValueError:
        return None
