"""What the provider says becomes what the ledger does.

A snapshot of a purchase, a payout, a refund or a chargeback is read into facts (money that moved: posted once each) and news (a state
without money). It does not matter whether it came as an event, as the answer to a question, or out of the statement; nor how often,
or in which order: see `ledger/settlements.py`. What is credited is what was paid, never what was meant to be.

What names nothing of ours, or pays in another currency, posts nothing: `Unmatched`, for the operator, and tried again later.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import errors, ids, money
from piggybank.db.engines import Database, Read, Write
from piggybank.ledger import SYSTEM, Ledger, Submission
from piggybank.ledger.commands import Command, Observe, Settle
from piggybank.ledger.settlements import PROVIDER, SENT, payout_effect
from piggybank.revio.objects import Money, Snapshot
from piggybank.settings import ProviderMode

# the provider's status of a purchase -> what it means for a deposit that is not paid
PURCHASE_NEWS: dict[str, str] = {
    "error": "pending",  # not the end: the checkout stays open, and the next attempt may succeed
    "pending_execute": "processing",
    "pending_charge": "processing",
    "hold": "processing",
    "preauthorized": "processing",
    "pending_capture": "processing",
    "pending_release": "processing",
    "released": "cancelled",
    "cancelled": "cancelled",
    "overdue": "failed",
    "expired": "failed",
    "blocked": "failed",
}
PAID = frozenset({"paid", "cleared", "settled", "pending_refund", "refunded", "chargeback"})
PAYOUT_NEWS: dict[str, str] = {"pending": "processing", "error": "failed"}
MONEY_BACK = {
    "payment.refunded": "refund",
    "payment.charged_back": "chargeback",
    "payment.chargeback_reversed": "chargeback_reversal",
}
ASKED_FOR = ("completed", "unknown", "processing", "failed")  # states of a refund that a told one may be, the likeliest first
RANK = {"pending": 1, "processing": 2, "cancelled": 3, "failed": 4, "completed": 5}  # of news of the same moment

_log = structlog.get_logger()


class Unmatched(Exception):
    """It names nothing that we know, or not in a way that can be posted; the text says why."""


class Ours(Struct, frozen=True, kw_only=True):
    """Our payment that a snapshot is about."""

    id: UUID
    account_id: UUID
    account_status: str
    currency: str
    kind: str
    status: str
    amount: int
    provider: str
    provider_id: str | None
    reference: str | None
    description: str | None


class Refund(Struct, frozen=True):
    """A payment of ours that asked for a refund."""

    id: UUID
    amount: int
    status: str
    provider_id: str | None


class Entry(Struct, frozen=True, kw_only=True):
    """A double entry without a user: `debit` grows, `credit` shrinks."""

    effect: str
    currency: str
    amount: int
    debit: str
    credit: str
    payment_id: UUID | None = None
    description: str = ""


class Meaning(Struct, frozen=True):
    """What a snapshot comes to."""

    commands: list[Command]
    entries: list[Entry]
    note: str = ""


class Applied(Struct, frozen=True):
    """What became of a snapshot: whose payment it was, and what an operator should know."""

    payment_id: UUID
    moved: bool  # something was new
    note: str = ""


_BY_ID = text("""
SELECT p.id, p.account_id, a.status AS account_status, a.currency, p.kind, p.status, p.amount, p.provider, p.provider_id, p.reference,
       p.description
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.bucket = :bucket AND p.id = :id AND p.method = 'revio'
""")

_BY_PROVIDER_ID = text("""
SELECT p.id, p.account_id, a.status AS account_status, a.currency, p.kind, p.status, p.amount, p.provider, p.provider_id, p.reference,
       p.description
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.provider_id = :provider_id AND p.method = 'revio'
""")

_REFUNDS = text("""
SELECT id, amount, status, provider_id FROM payments WHERE bucket = :bucket AND refund_of = :payment_id ORDER BY id
""")

_ENTER = text("""
INSERT INTO system_entries (id, provider, currency, amount, debit, credit, effect, payment_id, description)
VALUES (:id, :provider, :currency, :amount, :debit, :credit, :effect, :payment_id, :description)
ON CONFLICT (effect) DO NOTHING
RETURNING id
""")


async def apply(db: Database, ledger: Ledger, mode: ProviderMode, snapshot: Snapshot) -> Applied:
    """Post what a snapshot says, once. Raises Unmatched, and what `Ledger.submit` raises."""
    if snapshot.is_test != (mode == "simulator"):
        raise Unmatched(f"a {'test' if snapshot.is_test else 'real'} object, and this installation's provider is {mode}")
    async with db.write() as read:  # on the primary: a replica may not know the payment of a moment ago
        ours = await _find(read, snapshot)
        refunds = []
        if ours.kind == "deposit":
            given = {"bucket": ids.bucket_of(ours.id), "payment_id": ours.id}
            refunds = [Refund(*row) for row in await read.execute(_REFUNDS, given)]
    if ours.provider != mode:
        raise Unmatched(f"the payment is {ours.provider}, this installation's provider is {mode}")
    return await post(db, ledger, mode, ours, meaning(snapshot, ours, refunds))


async def post(db: Database, ledger: Ledger, mode: ProviderMode, ours: Ours, found: Meaning) -> Applied:
    """Submit the commands in order, then write the entries."""
    moved = False
    for command in found.commands:
        outcome = await ledger.submit(Submission(command, SYSTEM))
        if isinstance(outcome.decision, errors.Error):
            if outcome.decision.retryable:
                raise outcome.decision
            raise Unmatched(str(outcome.decision))
        moved |= not outcome.replayed
        if not outcome.replayed and isinstance(command, Settle) and ours.account_status == "closed":
            _log.error("money_moved_on_a_closed_account", account=str(ours.account_id), payment=str(ours.id), kind=command.kind)
    if found.entries:
        async with db.write() as write:
            moved |= any([await enter(write, mode, entry) for entry in found.entries])
    return Applied(ours.id, moved, found.note)


async def enter(write: Write, mode: ProviderMode, entry: Entry) -> bool:
    """Write a system entry; False when it is there already."""
    bucket = ids.bucket_of(entry.payment_id) if entry.payment_id else 0
    given = {
        "id": ids.new_id(bucket),
        "provider": mode,
        "currency": entry.currency,
        "amount": entry.amount,
        "debit": entry.debit,
        "credit": entry.credit,
        "effect": entry.effect,
        "payment_id": entry.payment_id,
        "description": entry.description,
    }
    return await write.scalar(_ENTER, given) is not None


def meaning(snapshot: Snapshot, ours: Ours, refunds: Sequence[Refund]) -> Meaning:
    """The commands and entries that a snapshot comes to. Raises Unmatched."""
    match snapshot.type, ours.kind:
        case "purchase", "deposit":
            return _of_purchase(snapshot, ours, refunds)
        case "payout", "withdrawal":
            return _of_payout(snapshot, ours)
        case "payment", "deposit":
            return _of_money_back(snapshot, ours, refunds)
        case kind, _:
            raise Unmatched(f"a {kind or 'nameless thing'} about a {ours.kind}")


def _of_purchase(snapshot: Snapshot, ours: Ours, refunds: Sequence[Refund]) -> Meaning:
    commands: list[Command] = []
    entries: list[Entry] = []
    note = ""
    if snapshot.payment is not None and not snapshot.payment.is_outgoing and snapshot.was & PAID:
        paid = _checked(snapshot.payment, ours)
        commands.append(_fact(ours, "deposit", paid.amount, f"purchase:{snapshot.id}:paid", snapshot.id, snapshot.stamp(RANK["completed"])))
        entries += _fee(paid, ours, f"purchase:{snapshot.id}")
        note = _difference(paid, ours)
    elif ours.provider_id in (None, snapshot.id) and snapshot.status in PURCHASE_NEWS:
        commands.append(_news(ours.id, ours.account_id, snapshot, PURCHASE_NEWS[snapshot.status], snapshot.failure or _end(snapshot)))
    if snapshot.event_type == "purchase.refund_failure":
        # the newest news of the purchase that knows of it; the refund's own stamp is that of the purchase when it was asked for
        commands += [
            _news(refund.id, ours.account_id, snapshot, "failed", snapshot.failure or "refund_failure")
            for refund in refunds
            if refund.status in SENT
        ]
    return Meaning(commands, entries, note)


def _of_payout(snapshot: Snapshot, ours: Ours) -> Meaning:
    if ours.provider_id not in (None, snapshot.id):
        raise Unmatched("another payout than the one that was executed for this payment")
    if "success" not in snapshot.was:
        status = PAYOUT_NEWS.get(snapshot.status)
        failure = snapshot.failure or ("error" if status == "failed" else None)
        return Meaning([_news(ours.id, ours.account_id, snapshot, status, failure)] if status else [], [])
    came_back = snapshot.status == "error"
    amount, entries, note = ours.amount, [], ""
    if snapshot.payment is not None:
        paid = _checked(snapshot.payment, ours)
        amount, entries, note = paid.amount, _fee(paid, ours, f"payout:{snapshot.id}"), _difference(paid, ours)
    # what comes after it in the same snapshot must count as newer
    stamp = 0 if came_back else snapshot.stamp(RANK["completed"])
    commands: list[Command] = [_fact(ours, "withdrawal", amount, payout_effect(ours.id), snapshot.id or None, stamp)]
    if came_back:
        commands.append(_news(ours.id, ours.account_id, snapshot, "failed", snapshot.failure or "returned"))
    return Meaning(commands, entries, note)


def _of_money_back(snapshot: Snapshot, ours: Ours, refunds: Sequence[Refund]) -> Meaning:
    kind = MONEY_BACK.get(snapshot.event_type) or (snapshot.payment.payment_type if snapshot.payment else "")
    if kind not in MONEY_BACK.values():
        raise Unmatched(f"a payment of the kind {kind or 'unnamed'}")
    if snapshot.payment is None:
        raise Unmatched("no amount")
    paid = _checked(snapshot.payment, ours)
    asked = _asked_for(refunds, snapshot.id, paid.amount) if kind == "refund" else None
    command = Settle(
        account_id=ours.account_id,
        kind=kind,  # type: ignore[arg-type]  # one of MONEY_BACK
        amount=paid.amount,
        source=PROVIDER,
        effect=f"{kind}:{snapshot.id}",
        payment_id=ours.id,
        refund_id=asked.id if asked else None,
        object_id=snapshot.id,
        reference=ours.reference,
    )
    return Meaning([command], _fee(paid, ours, f"{kind}:{snapshot.id}"))


def _asked_for(refunds: Sequence[Refund], object_id: str, amount: int) -> Refund | None:
    """Which of our refunds this is: the one that got this id, else one of the amount: ended by hand, or sent, or believed failed.

    One that was never sent is none of these, however well the amount fits: the ledger sees to that, too.
    """
    known = [refund for refund in refunds if refund.provider_id == object_id]
    alike = [refund for refund in refunds if refund.provider_id is None and refund.amount == amount]
    order = [refund for status in ASKED_FOR for refund in alike if refund.status == status]
    return next(iter([*known, *order]), None)


def _fact(ours: Ours, kind: Any, amount: int, effect: str, object_id: str | None, stamp: int) -> Settle:
    return Settle(
        account_id=ours.account_id,
        kind=kind,
        amount=amount,
        source=PROVIDER,
        effect=effect,
        payment_id=ours.id,
        object_id=object_id,
        stamp=stamp,
        reference=ours.reference,
        description=ours.description,
    )


def _news(payment_id: UUID, account_id: UUID, snapshot: Snapshot, status: Any, failure: str | None) -> Observe:
    return Observe(account_id=account_id, payment_id=payment_id, status=status, stamp=snapshot.stamp(RANK[status]), failure=failure)


def _end(snapshot: Snapshot) -> str | None:
    """Why a checkout ended, where no attempt says so."""
    return snapshot.status if PURCHASE_NEWS[snapshot.status] == "failed" else None


def _fee(paid: Money, ours: Ours, what: str) -> list[Entry]:
    """What the provider keeps of it: it owes us that much less."""
    if not paid.fee_amount:
        return []
    if not 0 < paid.fee_amount <= money.MAX_BALANCE:
        raise Unmatched(f"a fee of {paid.fee_amount}")
    return [
        Entry(
            effect=f"{what}:fee",
            currency=paid.currency,
            amount=paid.fee_amount,
            debit="provider_fees",
            credit="clearing",
            payment_id=ours.id,
        )
    ]


def _checked(paid: Money, ours: Ours) -> Money:
    if paid.currency != ours.currency:
        raise Unmatched(f"paid in {paid.currency}, the account is in {ours.currency}")
    if not 0 < paid.amount <= money.MAX_BALANCE:
        raise Unmatched(f"an amount of {paid.amount}")
    return paid


def _difference(paid: Money, ours: Ours) -> str:
    return "" if paid.amount == ours.amount else f"{paid.amount} was paid of {ours.amount} {ours.currency}"


async def _find(read: Read, snapshot: Snapshot) -> Ours:
    """By our own id in the reference, else by the provider's; a refund or chargeback by the purchase that it is about."""
    about = snapshot.related_to.id if snapshot.type == "payment" and snapshot.related_to else snapshot.id
    row: Row[Any] | None = None
    if (payment_id := _uuid(snapshot.reference)) is not None:
        row = (await read.execute(_BY_ID, {"bucket": ids.bucket_of(payment_id), "id": payment_id})).one_or_none()
    if row is None and about:
        rows = (await read.execute(_BY_PROVIDER_ID, {"provider_id": about})).all()
        row = rows[0] if len(rows) == 1 else None
    if row is None:
        raise Unmatched("no payment of ours has this reference or this id")
    return Ours(**row._asdict())


def _uuid(given: str | None) -> UUID | None:
    try:
        return UUID(given or "")
    except ValueError:
        return None
