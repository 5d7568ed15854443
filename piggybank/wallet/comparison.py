"""Our book beside the provider's: its statement row by row, then the balance.

What the statement has and we do not is first asked for and posted as any other news (an event was lost), and counted as mended. What is
left is listed with what to do about it. Nothing here is written but what the provider says, so it may be done again at any time.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import text

from piggybank import ids
from piggybank.db.engines import Database
from piggybank.ledger import Ledger
from piggybank.ledger.settlements import PROVIDER, payout_effect, return_effect
from piggybank.revio import Client, Refused, statements
from piggybank.revio.objects import Change, Money, Related, Snapshot
from piggybank.revio.statements import Line
from piggybank.settings import ProviderMode
from piggybank.wallet import clearing, settlement
from piggybank.wallet.settlement import Entry, Unmatched

LOOK_BACK_MOST = timedelta(days=31)
MARGIN = timedelta(hours=2)  # our posting and their booking of one thing may lie that far apart
SLICE_LINES = 1_000
BALANCE_LOOKS = 3  # until nothing of ours changes while the provider is asked
SETTLEMENT = "settlement"
EVENTS_OF = {"refund": "payment.refunded", "chargeback": "payment.charged_back", "chargeback_reversal": "payment.chargeback_reversed"}
EFT_STATUS = {"PENDING": "pending", "COMPLETED": "success", "UNPAID": "error"}  # of payouts that were EFT credits

Kind = Literal["ours_only", "theirs_only", "amount_differs", "fee_differs", "balance_differs", "unknown"]
ADVICE: dict[Kind, str] = {
    "ours_only": "Ask the provider with its id. If it never happened, have it confirmed in writing before anything is corrected.",
    "theirs_only": "Look for it in the provider's dashboard: somebody made it there, or it belongs to another system.",
    "amount_differs": "What we posted is what the event said; have the provider explain its statement.",
    "fee_differs": "Have the provider explain the fee; system_entries hold what the event said.",
    "balance_differs": "Look at the other items of this and of the last ones first: they add up to it, or an event is on its way.",
    "unknown": "Find out with the provider whether it was paid; then two operators: POST /v1/ops/payments/{id}/resolve.",
}

_log = structlog.get_logger()


class Item(Struct, frozen=True, kw_only=True):
    """One thing that differs. `ours` and `theirs` are minor units; null where a side knows nothing of it."""

    kind: Kind
    provider_id: str | None
    payment_id: UUID | None
    currency: str
    ours: int | None
    theirs: int | None
    what: str
    what_to_do: str


# What was posted under these effects. Buckets come from our own ids in the references, else all are looked into.
_POSTED = text("""
SELECT e.effect, t.id AS transaction_id, t.payment_id, abs(t.amount) AS amount
FROM effects e
JOIN transactions t ON t.bucket = e.bucket AND t.id = e.transaction_id
WHERE e.source = :source AND e.effect = ANY(CAST(:effects AS text[])) AND e.bucket = ANY(CAST(:buckets AS smallint[]))
""")
_ENTERED = text("SELECT effect, amount FROM system_entries WHERE effect = ANY(CAST(:effects AS text[]))")

# Everything that the provider moved in that time, by our book.
_OURS = text("""
SELECT t.id, t.payment_id, t.kind, abs(t.amount) AS amount, a.currency, p.provider_id
FROM transactions t
JOIN payments p ON p.bucket = t.bucket AND p.id = t.payment_id
JOIN accounts a ON a.bucket = t.bucket AND a.id = t.account_id
WHERE t.id >= :lowest AND t.id < :below AND p.method = 'revio' AND p.provider = :provider
  AND NOT EXISTS (SELECT FROM booked_transactions b WHERE b.transaction_id = t.id)
""")

_BOOKED = text("""
INSERT INTO booked_transactions (transaction_id, reconciliation_id)
SELECT unnest(CAST(:transactions AS uuid[])), :reconciliation_id
ON CONFLICT DO NOTHING
""")

_UNKNOWN = text("""
SELECT p.id, p.provider_id, p.amount, a.currency, p.kind
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.status = 'unknown' AND p.method = 'revio' AND p.provider = :provider
ORDER BY p.id
""")

_ADOPTED = text("SELECT reference, payment_id FROM lost_payments WHERE provider = :provider AND payment_id IS NOT NULL")

_OLDEST_OPEN = text("""
SELECT id FROM payments
WHERE status IN ('processing', 'unknown') AND kind = 'withdrawal'
  AND method = 'revio' AND provider = :provider
ORDER BY id
LIMIT 1
""")


class _Posted(Struct, frozen=True):
    """What we have of a line."""

    transaction_id: UUID
    payment_id: UUID | None
    amount: int
    fee: int


class Comparison:
    """One comparison, as far as it has come."""

    def __init__(self, run_id: UUID, db: Database, ledger: Ledger, mode: ProviderMode, client: Client, tell: Callable[[str], None]) -> None:
        self.id = run_id
        self.db = db
        self.ledger = ledger
        self.mode = mode
        self.client = client
        self.tell = tell
        self.rows = self.matched = self.mended = 0
        self.items: list[Item] = []
        self.seen: set[UUID] = set()  # transactions that this slice of the statement knows

    def differs(
        self,
        kind: Kind,
        what: str,
        currency: str,
        *,
        ours: int | None = None,
        theirs: int | None = None,
        provider_id: str | None = None,
        payment_id: UUID | None = None,
    ) -> None:
        """Something for the list."""
        self.items.append(
            Item(
                kind=kind,
                provider_id=provider_id,
                payment_id=payment_id,
                currency=currency,
                ours=ours,
                theirs=theirs,
                what=what,
                what_to_do=ADVICE[kind],
            )
        )


async def compare(run: Comparison, since: datetime, until: datetime) -> None:
    run.tell("waiting for the provider's statement")
    lines = _booked(statements.read(await run.client.statement(await _oldest_open(run, since) - MARGIN, until + MARGIN)))
    adopted = await _adopted(run)
    lines = [msgspec.structs.replace(line, reference=adopted.get(line.reference, line.reference)) for line in lines]
    inside = [line for line in lines if since.timestamp() <= line.created_on < until.timestamp()]
    run.rows = len(inside)
    for first in range(0, len(lines), SLICE_LINES):
        run.tell(f"comparing {min(first + SLICE_LINES, len(lines))} of {len(lines)} rows")
        await _compare_slice(run, lines[first : first + SLICE_LINES], since, until)
    run.tell("looking for what the statement does not have")
    await _ours_only(run, since, until)
    await _unknown(run)
    run.tell("comparing balances")
    await _balances(run)


async def _adopted(run: Comparison) -> dict[str, str]:
    """Payments that a restored database had lost, and that were asked for again: their reference is another id than ours."""
    async with run.db.read() as read:
        return {str(row.reference): str(row.payment_id) for row in await read.execute(_ADOPTED, {"provider": run.mode})}


async def _oldest_open(run: Comparison, since: datetime) -> datetime:
    """EFT credits of earlier days may have ended only now: their rows are looked at again."""
    async with run.db.read() as read:
        oldest = await read.scalar(_OLDEST_OPEN, {"provider": run.mode})
    return since if oldest is None else max(min(since, ids.time_of(oldest)), since - LOOK_BACK_MOST)


def _booked(lines: Sequence[Line]) -> list[Line]:
    """Without the second half of EFT credits that came to nothing: the first half, UNPAID, says it all."""
    unpaid = {line.id for line in lines if line.type == "payout" and line.status == "UNPAID"}
    return [line for line in lines if not (line.type == "payout_return" and line.related_to in unpaid)]


async def _compare_slice(run: Comparison, lines: Sequence[Line], since: datetime, until: datetime) -> None:
    posted = await _posted(run.db, lines)
    missing = []
    for line in lines:
        counts = since.timestamp() <= line.created_on < until.timestamp()
        if line.type == SETTLEMENT:
            run.matched += counts
            await _to_bank(run, line)
        elif line.status in EFT_STATUS:
            await _eft(run, line, posted.get(_effect(line)), counts=counts)
        elif (row := posted.get(_effect(line))) is not None:
            await _matches(run, line, row, counts=counts)
        elif counts:
            missing.append(line)
    for line in missing:
        await _mend(run, line)
    async with run.db.write() as write:  # also those of other days: what is ours now may be in the statement of the day before
        await write.execute(_BOOKED, {"transactions": list(run.seen), "reconciliation_id": run.id})
    run.seen.clear()


async def _eft(run: Comparison, line: Line, row: _Posted | None, *, counts: bool) -> None:
    """The statement alone decides about an EFT credit: it is posted, or has failed, or is under way, as it says."""
    why = ""
    if row is None or line.status == "UNPAID":
        try:
            applied = await settlement.apply(run.db, run.ledger, run.mode, await _snapshot(run, line))
            run.mended += applied.moved
        except Unmatched as unmatched:
            why = str(unmatched)
        row = (await _posted(run.db, [line])).get(_effect(line))
    if row is not None:
        await _matches(run, line, row, counts=counts)
    elif why and counts:
        run.differs("theirs_only", f"{line.type} {line.id}: {why}", line.currency, theirs=line.amount, provider_id=line.id)
    elif counts:
        run.matched += 1  # under way, or failed: nothing is to be posted


async def _mend(run: Comparison, line: Line) -> None:
    """The event was lost: ask, or take the statement's word for what cannot be asked about."""
    why = "the statement has it, we do not"
    try:
        await settlement.apply(run.db, run.ledger, run.mode, await _snapshot(run, line))
    except Unmatched as unmatched:
        why = str(unmatched)
    except Refused as refused:
        why = f"the provider does not tell about it ({refused.code})"
    row = (await _posted(run.db, [line])).get(_effect(line))
    if row is None:
        what = f"{line.type} {line.id}: {why}"
        run.differs("theirs_only", what, line.currency, theirs=line.amount, provider_id=line.id)
        return
    run.mended += 1
    _log.warning("reconciliation_mended", type=line.type, payment=str(row.payment_id))
    await _matches(run, line, row, counts=True)


async def _snapshot(run: Comparison, line: Line) -> Snapshot:
    """What the line says, in the provider's own words where they can be asked for."""
    if line.type == "purchase":
        return await run.client.purchase(line.id)
    if line.type == "payout" and line.status not in EFT_STATUS:
        return await run.client.payout(line.id)
    if line.type == "payout_return":
        try:
            return await run.client.payout(line.related_to)
        except Refused:  # an EFT credit: the statement alone knows of it
            history = [Change(status="success"), Change(status="error")]
            return Snapshot(
                id=line.related_to,
                type="payout",
                status="error",
                status_history=history,
                updated_on=line.updated_on,
                reference=line.reference,
                is_test=run.mode == "simulator",
            )
    paid = Money(amount=line.amount, currency=line.currency, fee_amount=line.fee_amount, payment_type=line.type)
    if line.type == "payout":
        return Snapshot(
            id=line.id,
            type="payout",
            status=EFT_STATUS[line.status],
            status_history=[Change(status=EFT_STATUS[line.status])],
            updated_on=line.updated_on,
            reference=line.reference,
            is_test=run.mode == "simulator",
            payment=paid,
        )
    return Snapshot(
        id=line.id,
        type="payment",
        event_type=EVENTS_OF.get(line.type, ""),
        updated_on=line.updated_on,
        reference=line.reference,
        is_test=run.mode == "simulator",
        payment=paid,
        related_to=Related(type="purchase", id=line.related_to),
    )


async def _matches(run: Comparison, line: Line, row: _Posted, *, counts: bool) -> None:
    run.seen.add(row.transaction_id)
    if not counts:
        return
    run.matched += 1

    def differs(kind: Kind, what: str, ours: int, theirs: int) -> None:
        run.differs(kind, what, line.currency, ours=ours, theirs=theirs, provider_id=line.id, payment_id=row.payment_id)

    if row.amount != line.amount:
        differs("amount_differs", f"{line.type} {line.id}", row.amount, line.amount)
    if row.fee != line.fee_amount:
        differs("fee_differs", f"the fee of {line.type} {line.id}", row.fee, line.fee_amount)


async def _posted(db: Database, lines: Sequence[Line]) -> dict[str, _Posted]:
    """By effect: what was posted, and its fee."""
    effects = [_effect(line) for line in lines if line.type != SETTLEMENT]
    buckets = {ids.bucket_of(UUID(line.reference)) for line in lines if _is_uuid(line.reference)}
    if any(not _is_uuid(line.reference) for line in lines):
        buckets = set(range(ids.BUCKETS))
    async with db.read() as read:
        rows = await read.execute(_POSTED, {"source": PROVIDER, "effects": effects, "buckets": sorted(buckets)})
        found = {row.effect: row for row in rows}
        fees = {row.effect: row.amount for row in await read.execute(_ENTERED, {"effects": [_fee_effect(line) for line in lines]})}
    return {
        _effect(line): _Posted(row.transaction_id, row.payment_id, row.amount, fees.get(_fee_effect(line), 0))
        for line in lines
        if (row := found.get(_effect(line))) is not None
    }


def _effect(line: Line) -> str:
    """The effect that a line has in our book: payouts by our own id, the rest by theirs."""
    match line.type:
        case "purchase":
            return f"purchase:{line.id}:paid"
        case "payout":
            return payout_effect(UUID(line.reference)) if _is_uuid(line.reference) else f"payout:{line.reference}"
        case "payout_return":
            return return_effect(UUID(line.reference)) if _is_uuid(line.reference) else f"payout:{line.reference}:returned"
        case kind:
            return f"{kind}:{line.id}"


def _fee_effect(line: Line) -> str:
    return f"{line.type}:{line.id}:fee"


def _is_uuid(given: str) -> bool:
    try:
        UUID(given)
    except ValueError:
        return False
    return True


async def _to_bank(run: Comparison, line: Line) -> None:
    """The provider has paid it out to our bank: it owes us that much less."""
    entry = Entry(
        effect=f"settlement:{line.id}",
        currency=line.currency,
        amount=line.amount,
        debit="bank",
        credit="clearing",
        description=f"settlement {line.id}",
    )
    async with run.db.write() as write:
        await settlement.enter(write, run.mode, entry)


async def _ours_only(run: Comparison, since: datetime, until: datetime) -> None:
    given = {"lowest": ids.first_id_at(since), "below": ids.first_id_at(until), "provider": run.mode}
    async with run.db.read() as read:
        rows = (await read.execute(_OURS, given)).all()
    for row in rows:
        what = f"{row.kind} {row.id} is posted, and the statement does not have it"
        run.differs("ours_only", what, row.currency, ours=row.amount, provider_id=row.provider_id, payment_id=row.payment_id)


async def _unknown(run: Comparison) -> None:
    async with run.db.read() as read:
        rows = (await read.execute(_UNKNOWN, {"provider": run.mode})).all()
    for row in rows:
        what = f"a {row.kind} of which nobody knows whether it happened"
        run.differs("unknown", what, row.currency, ours=row.amount, provider_id=row.provider_id, payment_id=row.id)


async def _balances(run: Comparison) -> None:
    before = await clearing.owed(run.db, run.mode)
    for _ in range(BALANCE_LOOKS):
        theirs = await run.client.balance()
        after = await clearing.owed(run.db, run.mode)
        if after == before:
            break
        before = after
    under_way = await clearing.under_way(run.db, run.mode)
    for currency in sorted(before.keys() | theirs.keys()):
        ours, owed = before.get(currency, 0), theirs[currency].balance if currency in theirs else 0
        going = under_way.get(currency, 0)
        if owed not in (ours, ours - going):  # a provider may book what is under way, or not yet
            what = f"what the provider owes us ({going} is under way)" if going else "what the provider owes us"
            run.differs("balance_differs", what, currency, ours=ours, theirs=owed)
