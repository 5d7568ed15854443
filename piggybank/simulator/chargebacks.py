"""Chargebacks and their reversals: payments of their own that belong to a purchase. All functions run inside a transaction."""

from piggybank.simulator import events, purchases, refunds, timers
from piggybank.simulator.kept_objects import KeptPurchase, load
from piggybank.simulator.objects import Payment
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

REVERSED_AFTER_S = 30.0


def charge_back(sim: Simulation, purchase_id: str, amount: int | None = None) -> Payment:
    """The payer's bank takes `amount` (default: all that is left) back."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    most = purchases.left(kept)
    amount = most if amount is None else amount
    if most <= 0:
        raise Refused(f"Nothing of a purchase that is {kept.sent.status} can be charged back.", "purchase_chargeback_error")
    if amount > most:
        raise Refused(f"{amount} is more than the {most} that can be charged back.", "purchase_chargeback_error", field="amount")
    kept.charged_back += amount
    kept.chargebacks.append(amount)
    purchases.refresh(sim, kept)
    payment = refunds.payment_of(sim, kept, "chargeback", amount, is_outgoing=True)
    events.emit(sim, payment.sent, "payment.charged_back")
    if sim.faults.happens("chargeback_reversed"):
        timers.put(sim, "chargeback_reversal", purchase_id, sim.wait_s(REVERSED_AFTER_S))
    return payment.sent


def reverse(sim: Simulation, purchase_id: str) -> Payment:
    """The newest chargeback that stands is taken back."""
    kept = load(sim.book, KeptPurchase, purchase_id)
    if not kept.chargebacks:
        raise Refused("No chargeback of this purchase stands.", "purchase_chargeback_error")
    amount = kept.chargebacks.pop()
    kept.charged_back -= amount
    purchases.refresh(sim, kept)
    payment = refunds.payment_of(sim, kept, "chargeback_reversal", amount, is_outgoing=False)
    events.emit(sim, payment.sent, "payment.chargeback_reversed")
    return payment.sent


def charge_back_later(sim: Simulation, purchase_id: str) -> None:
    """By the fault: not when everything was given back in the meantime."""
    if purchases.left(load(sim.book, KeptPurchase, purchase_id)) > 0:
        charge_back(sim, purchase_id)


def reverse_later(sim: Simulation, purchase_id: str) -> None:
    """By the fault: not when somebody reversed it in the meantime."""
    if load(sim.book, KeptPurchase, purchase_id).chargebacks:
        reverse(sim, purchase_id)
