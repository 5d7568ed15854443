"""What two operators say became of a payment that nobody else can tell about.

Only an `unknown` payment can be resolved: its money may have moved, so one person's word is not enough. The first proposes, another
confirms, and only then is it posted. Should the provider tell later, the same effect keeps it from counting twice, and an outcome that
turns out otherwise is put right by its own rows (see ledger/settlements.py).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct
from sqlalchemy import text

from piggybank import errors, ids
from piggybank.db.engines import Database, Write
from piggybank.ledger import SYSTEM, Ledger, Submission
from piggybank.ledger.commands import Advance, Command, Settle
from piggybank.ledger.settlements import PROVIDER, payout_effect
from piggybank.wallet import orders
from piggybank.wallet.orders import Payment

Outcome = Literal["completed", "failed"]
Verb = Literal["propose", "confirm"]
Note = Callable[[Write, Verb], None]  # writes down who did it, in the transaction that does it


class Resolution(Struct, frozen=True, kw_only=True):
    """`confirmed_by` is null until a second operator agrees."""

    id: UUID
    payment_id: UUID
    outcome: Outcome
    note: str
    proposed_by: UUID
    confirmed_by: UUID | None


_OPEN = text(
    "SELECT id, payment_id, outcome, note, proposed_by, confirmed_by FROM resolutions WHERE payment_id = :payment_id AND ended_at IS NULL"
)
_PROPOSE = text("""
INSERT INTO resolutions (id, payment_id, outcome, note, proposed_by)
VALUES (:id, :payment_id, :outcome, :note, :by)
ON CONFLICT (payment_id) WHERE ended_at IS NULL DO NOTHING
""")
_CONFIRM = text("UPDATE resolutions SET confirmed_by = :by WHERE id = :id AND ended_at IS NULL AND confirmed_by IS NULL")
_END = text("UPDATE resolutions SET ended_at = :now WHERE payment_id = :payment_id AND ended_at IS NULL")
_OPERATORS = text("SELECT count(*) FROM users WHERE role = 'operator'")


async def resolve(
    db: Database, ledger: Ledger, payment_id: UUID, outcome: Outcome, note: str, operator: UUID, write_down: Note
) -> Resolution:
    """Propose an outcome, or confirm another operator's.

    Raises NotFound, NotUnknown, ResolutionDiffers, SecondOperatorNeeded (the same operator again).
    """
    payment = await orders.get(db, payment_id)
    if payment.status != "unknown":
        await _forget(db, payment_id)
        raise errors.NotUnknown(payment_id=str(payment_id), payment_status=payment.status)
    async with db.write() as write:
        given = {"id": ids.new_id(0), "payment_id": payment_id, "outcome": outcome, "note": note, "by": operator}
        made = (await write.execute(_PROPOSE, given)).rowcount == 1  # type: ignore[attr-defined]  # a CursorResult
        if made:
            write_down(write, "propose")
        row = (await write.execute(_OPEN, {"payment_id": payment_id})).one()
        operators = await write.scalar(_OPERATORS) or 0
    found = Resolution(**row._asdict())
    if made:
        if operators < 2:  # proposed already: the way on is to have a second one
            raise errors.SecondOperatorNeeded(payment_id=str(payment_id), proposed=outcome, do="piggybank users operator-link")
        return found
    if found.proposed_by == operator and found.confirmed_by is None:
        if found.outcome != outcome:
            await _forget(db, payment_id)
            return await resolve(db, ledger, payment_id, outcome, note, operator, write_down)
        if operators < 2:
            raise errors.SecondOperatorNeeded(payment_id=str(payment_id), proposed=outcome, do="piggybank users operator-link")
        return found
    if found.outcome != outcome:
        raise errors.ResolutionDiffers(payment_id=str(payment_id), proposed=found.outcome, yours=outcome)
    async with db.write() as write:
        confirmed = (await write.execute(_CONFIRM, {"id": found.id, "by": operator})).rowcount == 1  # type: ignore[attr-defined]
        if confirmed:
            write_down(write, "confirm")
        now = (await write.execute(_OPEN, {"payment_id": payment_id})).one_or_none()
    if now is None or not (confirmed or (now.id == found.id and now.confirmed_by == operator)):
        raise errors.ResolutionDiffers(payment_id=str(payment_id), proposed="(changed meanwhile)", yours=outcome)
    decision = (await ledger.submit(Submission(_command(payment, outcome), SYSTEM))).decision
    if isinstance(decision, errors.Error) and not isinstance(decision, errors.PaymentMovedOn):
        raise decision
    await _forget(db, payment_id)
    return Resolution(**now._asdict())


def _command(payment: Payment, outcome: Outcome) -> Command:
    if outcome == "failed":
        return Advance(
            account_id=payment.account_id,
            payment_id=payment.id,
            was=frozenset({"unknown"}),
            status="failed",
            failure="resolved_by_operators",
        )
    if payment.kind == "refund":
        return Settle(
            account_id=payment.account_id,
            kind="refund",
            amount=payment.amount,
            source=PROVIDER,
            effect=f"resolved:{payment.id}",
            payment_id=payment.refund_of,
            refund_id=payment.id,
            description=payment.description,
        )
    return Settle(
        account_id=payment.account_id,
        kind="withdrawal",
        amount=payment.amount,
        source=PROVIDER,
        effect=payout_effect(payment.id),
        payment_id=payment.id,
        description=payment.description,
    )


async def _forget(db: Database, payment_id: UUID) -> None:
    """Nothing is proposed any more."""
    async with db.write() as write:
        await write.execute(_END, {"payment_id": payment_id, "now": datetime.now(UTC)})
