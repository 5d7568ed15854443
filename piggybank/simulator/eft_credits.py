"""EFT credits, the other rail: PENDING, then COMPLETED or UNPAID. All functions run inside a transaction.

Nothing is idempotent: the same contractReference twice is paid twice. The money leaves when a credit is posted and comes back,
as an entry of its own, when it is unpaid. The payee's account decides how it ends.
"""

from piggybank.simulator import entries, events, timers
from piggybank.simulator.book import new_id
from piggybank.simulator.entries import Entry
from piggybank.simulator.kept_objects import KeptCredit, insert, load, save
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

CURRENCY = "ZAR"
USUAL_TAKES_S = 40.0
REJECT_TAKES_S = 5.0
FULL_REJECT, BATCH_REJECT, ACCEPTED, UNPAID, DISPUTED = "910000001", "910000002", "110000001", "110000002", "210000001"
RETURN_AFTER_S = 120.0
DISPUTE_AFTER_S = 40.0


def create(sim: Simulation, kept: KeptCredit) -> None:
    """Post a credit."""
    insert(sim.book, kept)
    sent = kept.sent
    entries.record(sim.book, Entry("payout", sent.id, sent.id, "", sent.contractReference, kept.currency, sent.amountCents))
    takes_s = REJECT_TAKES_S if kept.account in (FULL_REJECT, BATCH_REJECT) else USUAL_TAKES_S
    timers.put(sim, "credit", sent.id, sim.wait_s(takes_s))


def finish(sim: Simulation, credit_id: str) -> None:
    """As the mock account says; any other account by the faults."""
    kept = load(sim.book, KeptCredit, credit_id)
    if kept.sent.status != "PENDING":
        return
    if kept.account in (FULL_REJECT, BATCH_REJECT, UNPAID):
        unpay(sim, credit_id)
    elif kept.account in (ACCEPTED, DISPUTED) or not sim.faults.happens("payout_error"):
        complete(sim, credit_id)
    else:
        unpay(sim, credit_id)


def complete(sim: Simulation, credit_id: str) -> KeptCredit:
    """The payee has it."""
    kept = load(sim.book, KeptCredit, credit_id)
    if kept.sent.status != "PENDING":
        raise Refused(f"The credit is {kept.sent.status}, not PENDING.", "eft_status_error")
    _become(sim, kept, "COMPLETED")
    if kept.account == DISPUTED:
        timers.put(sim, "credit_return", credit_id, sim.wait_s(DISPUTE_AFTER_S))
    elif kept.account != ACCEPTED and sim.faults.happens("payout_return"):
        timers.put(sim, "credit_return", credit_id, sim.wait_s(RETURN_AFTER_S))
    return kept


def unpay(sim: Simulation, credit_id: str) -> KeptCredit:
    """It could not be paid, or comes back: the money is here again."""
    kept = load(sim.book, KeptCredit, credit_id)
    if kept.sent.status == "UNPAID":
        raise Refused("The credit is UNPAID already.", "eft_status_error")
    _become(sim, kept, "UNPAID")
    sent = kept.sent
    back = Entry("payout_return", new_id(), "", sent.id, sent.contractReference, kept.currency, sent.amountCents)
    entries.record(sim.book, back)
    return kept


def come_back_later(sim: Simulation, credit_id: str) -> None:
    """One that was completed comes back."""
    if load(sim.book, KeptCredit, credit_id).sent.status == "COMPLETED":
        unpay(sim, credit_id)


def _become(sim: Simulation, kept: KeptCredit, status: str) -> None:
    for action in ("credit", "credit_return"):
        timers.drop(sim, action, kept.sent.id)
    kept.sent.status = status
    kept.updated_on = sim.book.now()
    save(sim.book, kept)
    events.emit_credit(sim, kept.sent)
