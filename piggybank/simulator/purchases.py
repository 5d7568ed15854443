"""Purchases: made, viewed, paid, declined, cancelled, expired.

    created -> viewed -> paid -> settled
                     \\-> error (may still be paid) -> overdue -> expired, when `due_strict`
                     \\-> cancelled

What happens to the money afterwards is in refunds.py, chargebacks.py and settlements.py. All functions run inside a transaction.
"""

from datetime import UTC, datetime

from piggybank.simulator import entries, events, timers
from piggybank.simulator.book import new_id
from piggybank.simulator.entries import Entry
from piggybank.simulator.kept_objects import KeptPurchase, insert, load, save
from piggybank.simulator.objects import Attempt, AttemptError, PaymentBlock
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

FEE_BASIS_POINTS = 290
FEE_FIXED = 100  # minor units
EXPIRED_AFTER_OVERDUE_S = 3_600.0
CHARGEBACK_AFTER_S = 30.0
WRONG_AMOUNT_MOST_OFF = 500  # minor units, more or less than asked
PROCESSING_TIME_S = 1

OPEN = frozenset({"created", "sent", "viewed", "error"})
REFUNDABLE = frozenset({"paid", "settled", "pending_refund"})
DECLINED = AttemptError("card_declined", "The card was declined by its issuer.")


def fee_of(amount: int) -> int:
    """What the provider keeps of a payment."""
    return min(amount, amount * FEE_BASIS_POINTS // 10_000 + FEE_FIXED)  # rounds down, in the seller's favour


def create(sim: Simulation, kept: KeptPurchase) -> None:
    """Write a new purchase and tell of it."""
    insert(sim.book, kept)
    events.emit(sim, kept.sent, "purchase.created")
    if kept.sent.due is not None and kept.sent.purchase.due_strict:
        # a moment of the real clock, so time_scale does not move it
        timers.put_at(sim, "purchase_overdue", kept.sent.id, kept.sent.due)


def is_payable(sim: Simulation, kept: KeptPurchase) -> bool:
    """Open, and not past its strict due time, also when the clockwork has not come by yet."""
    sent = kept.sent
    is_past = sent.purchase.due_strict and sent.due is not None and sim.book.now() >= sent.due
    return sent.status in OPEN and not is_past


def view(sim: Simulation, purchase_id: str) -> KeptPurchase:
    """The checkout page was opened."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if kept.sent.viewed_on is None and is_payable(sim, kept):
        now = sim.book.now()
        kept.sent.viewed_on = kept.sent.updated_on = now
        if kept.sent.status != "error":
            kept.sent.become("viewed", now)
        save(sim.book, kept)
        events.emit(sim, kept.sent, "purchase.viewed")
    return kept


def pay(
    sim: Simulation, purchase_id: str, *, method: str = "", ip: str = "", amount: int | None = None, currency: str | None = None
) -> KeptPurchase:
    """The payer pays what is asked for, unless told otherwise or by a fault."""
    kept = _payable(sim, purchase_id)
    sent, now = kept.sent, sim.book.now()
    amount, currency = _chosen(sim, kept, amount, currency)
    fee = fee_of(amount)
    method = method or _usual_method(kept)
    sent.payment = PaymentBlock(
        payment_type="purchase",
        is_outgoing=False,
        amount=amount,
        currency=currency,
        net_amount=amount - fee,
        fee_amount=fee,
        description=sent.reference,
        paid_on=now,
        remote_paid_on=now,
    )
    kept.paid = amount
    _attempt(kept, method, ip, fee, None)
    _set_status(kept, "paid", now)
    save(sim.book, kept)
    entries.record(sim.book, Entry("purchase", sent.id, sent.id, "", sent.reference, currency, amount, fee))
    events.emit(sim, sent, "purchase.paid", success_callback=sent.success_callback)
    timers.drop(sim, "purchase_overdue", purchase_id)
    if sim.faults.happens("chargeback"):
        timers.put(sim, "chargeback", purchase_id, sim.wait_s(CHARGEBACK_AFTER_S))
    return kept


def decline(sim: Simulation, purchase_id: str, *, method: str = "", ip: str = "", error: AttemptError = DECLINED) -> KeptPurchase:
    """A try to pay fails; the next one may succeed."""
    kept = _payable(sim, purchase_id)
    _attempt(kept, method or _usual_method(kept), ip, 0, error)
    kept.sent.become("error", sim.book.now())
    save(sim.book, kept)
    events.emit(sim, kept.sent, "purchase.payment_failure")
    return kept


def cancel(sim: Simulation, purchase_id: str) -> KeptPurchase:
    """The seller takes it back before it is paid."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if kept.sent.status not in OPEN:
        raise Refused(f"A purchase that is {kept.sent.status} cannot be cancelled.", "purchase_cancel_error")
    kept.sent.become("cancelled", sim.book.now())
    save(sim.book, kept)
    events.emit(sim, kept.sent, "purchase.cancelled")
    timers.drop(sim, "purchase_overdue", purchase_id)
    return kept


def overdue(sim: Simulation, purchase_id: str) -> None:
    """Its due time has passed. There is no event for that."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if kept.sent.status in OPEN:
        kept.sent.become("overdue", sim.book.now())
        save(sim.book, kept)
        timers.put(sim, "purchase_expired", purchase_id, sim.wait_s(EXPIRED_AFTER_OVERDUE_S))


def expired(sim: Simulation, purchase_id: str) -> None:
    """It was overdue for long enough. There is no event for that either."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if kept.sent.status == "overdue":
        kept.sent.become("expired", sim.book.now())
        save(sim.book, kept)


def expire(sim: Simulation, purchase_id: str) -> KeptPurchase:
    """Both at once, by hand."""
    for action in ("purchase_overdue", "purchase_expired"):
        timers.drop(sim, action, purchase_id)
    overdue(sim, purchase_id)
    timers.drop(sim, "purchase_expired", purchase_id)
    expired(sim, purchase_id)
    kept = load(sim.book, KeptPurchase, purchase_id)
    if kept.sent.status != "expired":
        raise Refused(f"A purchase that is {kept.sent.status} cannot expire.", "purchase_expire_error")
    return kept


def refresh(sim: Simulation, kept: KeptPurchase) -> None:
    """Derive status and what can be refunded after money of a paid purchase moved, and write it."""
    settled = "settled" if kept.settled else "paid"
    if kept.charged_back:
        status = "chargeback"
    elif kept.refunding:
        status = "pending_refund"
    else:
        status = "refunded" if kept.refunded >= kept.paid else settled
    _set_status(kept, status, sim.book.now())
    save(sim.book, kept)


def left(kept: KeptPurchase) -> int:
    """What of the payment is neither given back, on its way back nor charged back."""
    return kept.paid - kept.refunded - kept.refunding - kept.charged_back


def _payable(sim: Simulation, purchase_id: str) -> KeptPurchase:
    kept = load(sim.book, KeptPurchase, purchase_id)
    if not is_payable(sim, kept):
        what = f"is {kept.sent.status}" if kept.sent.status not in OPEN else "is past its due time"
        raise Refused(f"A purchase that {what} cannot be paid.", "purchase_charge_error")
    return kept


def _chosen(sim: Simulation, kept: KeptPurchase, amount: int | None, currency: str | None) -> tuple[int, str]:
    asked = kept.sent.purchase
    if amount is None:
        amount = asked.total
        if sim.faults.happens("wrong_amount"):
            off = sim.faults.dice.randint(1, WRONG_AMOUNT_MOST_OFF)
            amount += off if sim.faults.dice.random() < 0.5 or off >= amount else -off
    if currency is None:
        currency = asked.currency
        if sim.faults.happens("wrong_currency"):
            currency = "USD" if currency != "USD" else "EUR"
    return amount, currency


def _set_status(kept: KeptPurchase, status: str, now: int) -> None:
    sent = kept.sent
    if sent.status == status:
        sent.updated_on = now
    else:
        sent.become(status, now)
    sent.refundable_amount = max(0, left(kept)) if status in REFUNDABLE else 0
    sent.refund_availability = "all" if sent.refundable_amount else "none"


def _attempt(kept: KeptPurchase, method: str, ip: str, fee: int, error: AttemptError | None) -> None:
    tried = Attempt(
        successful=error is None,
        payment_method=method,
        fee_amount=fee,
        error=error,
        processing_time=PROCESSING_TIME_S,
        processing_tx_id=new_id(),
        client_ip=ip,
        country=kept.sent.client.country,
    )
    data = kept.sent.transaction_data
    data.payment_method, data.country = method, kept.sent.client.country
    data.attempts.insert(0, tried)


def _usual_method(kept: KeptPurchase) -> str:
    return (kept.sent.payment_method_whitelist or ["visa"])[0]


def issued(now: int) -> str:
    """The day, as the API says it."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()
