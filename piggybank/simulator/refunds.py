"""Refunds: asked for, then done or failed; whole or in parts, as often as something is left.

The money is set aside when a refund is asked for. All functions run inside a transaction.
"""

from piggybank.simulator import entries, events, purchases, timers
from piggybank.simulator.book import new_id
from piggybank.simulator.entries import RESERVED, Entry
from piggybank.simulator.kept_objects import KeptPayment, KeptPurchase, insert, load
from piggybank.simulator.objects import Payment, PaymentBlock, Purchase, RelatedTo, Step, TransactionData
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

REFUND_TAKES_S = 10.0


def request(sim: Simulation, purchase_id: str, amount: int | None) -> Purchase | Payment:
    """Give `amount` (default: what is left) back: the purchase, pending, or the payment when it was done at once."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    amount = _allowed(kept, amount)
    currency = _currency(kept)
    kept.refunding += amount
    entries.add_pending(sim.book, currency, RESERVED, amount)
    if sim.faults.happens("sync_refund"):
        return _succeed(sim, kept, amount)
    purchases.refresh(sim, kept)
    events.emit(sim, kept.sent, "purchase.pending_refund")
    timers.put(sim, "refund", purchase_id, sim.wait_s(REFUND_TAKES_S), str(amount))
    return kept.sent


def finish(sim: Simulation, purchase_id: str, amount: int) -> None:
    """A refund that was pending succeeds, or by a fault fails."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if not sim.faults.happens("refund_failure"):
        _succeed(sim, kept, amount)
        return
    kept.refunding -= amount
    entries.add_pending(sim.book, _currency(kept), RESERVED, -amount)
    purchases.refresh(sim, kept)
    events.emit(sim, kept.sent, "purchase.refund_failure")


def payment_of(sim: Simulation, kept: KeptPurchase, kind: str, amount: int, *, is_outgoing: bool) -> KeptPayment:
    """A new payment that belongs to a purchase, with its entry."""
    sent, now = kept.sent, sim.book.now()
    currency = _currency(kept)
    block = PaymentBlock(
        payment_type=kind,
        is_outgoing=is_outgoing,
        amount=amount,
        currency=currency,
        net_amount=amount,
        description=sent.reference,
        paid_on=now,
        remote_paid_on=now,
    )
    made = Payment(
        id=new_id(),
        status="success",
        status_history=[Step("success", now)],
        created_on=now,
        updated_on=now,
        company_id=sent.company_id,
        brand_id=sent.brand_id,
        reference=sent.reference,
        client=sent.client,
        payment=block,
        related_to=RelatedTo("purchase", sent.id),
        transaction_data=TransactionData(payment_method=sent.transaction_data.payment_method, country=sent.transaction_data.country),
    )
    payment = KeptPayment(sent=made)
    insert(sim.book, payment)
    entries.record(sim.book, Entry(kind, made.id, made.id, sent.id, sent.reference, currency, amount))
    return payment


def _allowed(kept: KeptPurchase, amount: int | None) -> int:
    most = kept.sent.refundable_amount
    if kept.sent.refund_availability == "none":
        raise Refused(f"A purchase that is {kept.sent.status} cannot be refunded.", "purchase_refund_error")
    amount = most if amount is None else amount
    if amount > most:
        raise Refused(f"{amount} is more than the {most} that can be refunded.", "purchase_refund_error")
    return amount


def _succeed(sim: Simulation, kept: KeptPurchase, amount: int) -> Payment:
    kept.refunding -= amount
    kept.refunded += amount
    entries.add_pending(sim.book, _currency(kept), RESERVED, -amount)
    purchases.refresh(sim, kept)
    payment = payment_of(sim, kept, "refund", amount, is_outgoing=True)
    events.emit(sim, payment.sent, "payment.refunded")
    return payment.sent


def _currency(kept: KeptPurchase) -> str:
    assert kept.sent.payment is not None, "a purchase that can be refunded was paid"
    return kept.sent.payment.currency
