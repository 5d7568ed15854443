"""What the provider carried out in the time that a restored database has lost: known again when it is asked for again.

The restored database has no row of it. But the provider tells our reference, which is the payment's id, and an id carries a mark of the
idempotency key that it was made for (`ids.mark_of`). So a client that sends its request again, with the same key, gets a payment with
the same mark, and that one is not sent a second time: it takes the place of the one that was lost.

Where no mark can tell, money does not go out by itself:

- a refund has no reference of its own. The next one of that amount for that deposit is taken for it;
- an account that was lost, too, is another account when it is made again. A payout like a lost one, for an account that is younger than
  the restore, becomes `unknown`, for two operators.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog
from msgspec import Struct
from sqlalchemy import text

from piggybank import ids
from piggybank.db.engines import Database
from piggybank.ledger.settlements import PROVIDER
from piggybank.revio.statements import Line
from piggybank.settings import ProviderMode

KINDS = {"purchase": "deposit", "payout": "withdrawal", "refund": "refund"}  # of a statement's lines, that a payment of ours makes

_log = structlog.get_logger()

_FIND = text("""
SELECT reference, kind, provider_id, amount, currency, found_at, payment_id FROM lost_payments
WHERE mark = :mark AND kind = :kind AND provider = :provider AND settled_at IS NULL AND (payment_id IS NULL OR payment_id = :payment_id)
ORDER BY reference
""")
_ALIKE = text("""
SELECT EXISTS (
    SELECT FROM lost_payments
    WHERE kind = 'withdrawal' AND provider = :provider AND amount = :amount AND currency = :currency
      AND payment_id IS NULL AND settled_at IS NULL AND found_at < :account_made_at
)
""")
_TAKE = text("UPDATE lost_payments SET payment_id = :payment_id WHERE reference = :reference AND payment_id IS NULL")
_KEEP = text("""
INSERT INTO lost_payments (reference, mark, provider, kind, provider_id, amount, currency, found_at)
VALUES (:reference, :mark, :provider, :kind, :provider_id, :amount, :currency, :now)
ON CONFLICT (reference) DO NOTHING
""")
_KNOWN = text("SELECT id FROM payments WHERE bucket = ANY(CAST(:buckets AS smallint[])) AND id = ANY(CAST(:ids AS uuid[]))")
_POSTED = text("""
SELECT effect FROM effects WHERE source = :source AND bucket = ANY(CAST(:buckets AS smallint[])) AND effect = ANY(CAST(:effects AS text[]))
""")
# Refunds that were on their way at the restore point: the line may be theirs, and they are asked about themselves.
_ASKED_FOR = text("""
SELECT refund_of, amount FROM payments
WHERE bucket = ANY(CAST(:buckets AS smallint[])) AND refund_of = ANY(CAST(:ids AS uuid[]))
  AND status IN ('creating', 'pending', 'processing', 'unknown')
""")
_WAITING = text("""
SELECT reference, kind, provider_id, amount, currency, found_at, payment_id FROM lost_payments
WHERE payment_id IS NULL AND settled_at IS NULL
ORDER BY reference
""")
_SETTLE = text("""
UPDATE lost_payments SET settled_at = :now, settled_by = :by
WHERE reference = :reference AND payment_id IS NULL AND settled_at IS NULL
RETURNING reference
""")


class Lost(Struct, frozen=True, kw_only=True):
    """What the provider carried out. `reference`: the id that we gave it and do not know any more; of a refund, a name for it."""

    reference: UUID
    kind: str
    provider_id: str
    amount: int
    currency: str
    found_at: datetime
    payment_id: UUID | None = None  # what took its place
    fee_amount: int = 0  # while the statement is read; the books get it with the payment


async def find(db: Database, mode: ProviderMode, kind: str, payment_id: UUID) -> Lost | None:
    """The lost payment that was made for the same idempotency key as this one, and for whose place nobody else has come."""
    return await _find(db, mode, kind, ids.mark_in(payment_id), payment_id)


async def find_refund(db: Database, mode: ProviderMode, deposit_id: UUID, amount: int, payment_id: UUID) -> Lost | None:
    """A lost refund of so much of that deposit, for whose place no other refund than this one has come."""
    return await _find(db, mode, "refund", ids.mark_in(deposit_id), payment_id, amount)


async def _find(db: Database, mode: ProviderMode, kind: str, mark: int, payment_id: UUID, amount: int | None = None) -> Lost | None:
    given = {"mark": mark, "kind": kind, "provider": mode, "payment_id": payment_id}
    async with db.write() as read:  # the primary's: it decides whether money is sent
        for row in await read.execute(_FIND, given):
            same_bucket = ids.bucket_of(row.reference) == ids.bucket_of(payment_id)
            if same_bucket and row.reference != payment_id and amount in (None, row.amount):
                return Lost(**row._asdict())
    return None


async def is_like_one(db: Database, mode: ProviderMode, account_id: UUID, amount: int, currency: str) -> bool:
    """Whether a payout for an account that was made after the restore could be one that was lost with its account."""
    given = {"provider": mode, "amount": amount, "currency": currency, "account_made_at": ids.time_of(account_id)}
    async with db.write() as read:
        return bool(await read.scalar(_ALIKE, given))


async def take(db: Database, lost: Lost, payment_id: UUID) -> None:
    """From now on this payment is the one that was lost."""
    _log.warning("payment_was_made_before_the_restore", payment=str(payment_id), reference=str(lost.reference))
    async with db.write() as write:
        await write.execute(_TAKE, {"payment_id": payment_id, "reference": lost.reference})


async def keep(db: Database, mode: ProviderMode, lines: Sequence[Line]) -> list[Lost]:
    """Those of the statement's lines that an id of ours stands in and that we know nothing of; written down, once.

    To be asked before the statement is posted: what is posted is known.
    """
    ours = {reference: line for line in lines if (reference := _reference(line)) is not None and line.type != "refund"}
    refunds = {line.id: line for line in lines if line.type == "refund" and _reference(line) is not None}
    async with db.write() as write:
        known = set[UUID]()
        if ours:
            given = {"ids": list(ours), "buckets": _buckets(ours)}
            known = {row.id for row in await write.execute(_KNOWN, given)}
        found = [_lost(reference, line) for reference, line in ours.items() if reference not in known]
        if refunds:
            deposits = [UUID(line.reference) for line in refunds.values()]
            buckets = _buckets(deposits)
            effects = [f"refund:{provider_id}" for provider_id in refunds]
            posted = {row.effect for row in await write.execute(_POSTED, {"source": PROVIDER, "buckets": buckets, "effects": effects})}
            asked = {(row.refund_of, row.amount) for row in await write.execute(_ASKED_FOR, {"buckets": buckets, "ids": deposits})}
            found += [
                _lost(_name_of(line), line)
                for provider_id, line in refunds.items()
                if f"refund:{provider_id}" not in posted and (UUID(line.reference), line.amount) not in asked
            ]
        rows = [
            {
                "reference": one.reference,
                "mark": ids.mark_in(one.reference),
                "provider": mode,
                "kind": one.kind,
                "provider_id": one.provider_id,
                "amount": one.amount,
                "currency": one.currency,
                "now": one.found_at,
            }
            for one in found
        ]
        if rows:
            await write.execute(_KEEP, rows)
    return found


async def waiting(db: Database) -> list[Lost]:
    """What nobody has asked for again, and no operator has dealt with."""
    async with db.read() as read:
        return [Lost(**row._asdict()) for row in await read.execute(_WAITING)]


async def settle(db: Database, reference: UUID, by: str) -> bool:
    """People have dealt with it: nothing is taken for it any more. False where there is none that waits."""
    async with db.write() as write:
        return await write.scalar(_SETTLE, {"reference": reference, "by": by, "now": datetime.now(UTC)}) is not None


def _lost(reference: UUID, line: Line) -> Lost:
    return Lost(
        reference=reference,
        kind=KINDS[line.type],
        provider_id=line.id,
        amount=line.amount,
        currency=line.currency,
        found_at=datetime.now(UTC),
        fee_amount=line.fee_amount,
    )


def _name_of(refund: Line) -> UUID:
    """The same for the same refund: its moment, and the mark and bucket of its deposit."""
    deposit, salt = UUID(refund.reference), ids.mark_of(refund.id) % 1_000_000_000
    return ids.new_id(ids.bucket_of(deposit), refund.created_on * 1_000_000_000 + salt, ids.mark_in(deposit))


def _buckets(references: Sequence[UUID] | dict[UUID, Line]) -> list[int]:
    return sorted({ids.bucket_of(reference) for reference in references})


def _reference(line: Line) -> UUID | None:
    if line.type not in KINDS or line.status == "UNPAID":
        return None
    try:
        return UUID(line.reference)
    except ValueError:
        return None
