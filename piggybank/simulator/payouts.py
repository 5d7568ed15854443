"""Payouts in two steps: made, then executed.

    initialized -> success -> error (it came back)
               \\-> pending -> success | error
               \\-> error -> executed again

There is no idempotency: whoever executes twice is told so only while the first is pending or has succeeded, and the executions
are counted. All functions run inside a transaction.
"""

from piggybank.simulator import entries, events, timers
from piggybank.simulator.book import new_id
from piggybank.simulator.entries import OUTGOING, Entry
from piggybank.simulator.kept_objects import KeptPayout, insert, load, save
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

PENDING_TAKES_S = 60.0
RETURN_AFTER_S = 120.0
EXECUTABLE = frozenset({"initialized", "error"})


def create(sim: Simulation, kept: KeptPayout) -> None:
    """Write a new payout and tell of it; no money moves yet."""
    insert(sim.book, kept)
    events.emit(sim, kept.sent, "payout.created")


def count(sim: Simulation, payout_id: str) -> None:
    """Its execution_url was called, whatever comes of it."""
    kept = load(sim.book, KeptPayout, payout_id)
    kept.executions += 1
    save(sim.book, kept)


def execute(sim: Simulation, payout_id: str) -> KeptPayout:
    """Send the money: done, pending or failed."""
    kept = load(sim.book, KeptPayout, payout_id)
    if kept.sent.status not in EXECUTABLE:
        raise Refused(f"A payout that is {kept.sent.status} was executed already.", "payout_already_executed")
    timers.drop(sim, "payout_return", payout_id)
    if sim.faults.happens("payout_pending"):
        _become(sim, kept, "pending", "payout.pending")
        entries.add_pending(sim.book, kept.sent.payment.currency, OUTGOING, kept.sent.payment.amount)
        timers.put(sim, "payout", payout_id, sim.wait_s(PENDING_TAKES_S))
    else:
        _end(sim, kept, is_success=not sim.faults.happens("payout_error"))
    return kept


def finish(sim: Simulation, payout_id: str) -> None:
    """One that was pending succeeds, or by a fault fails."""
    kept = load(sim.book, KeptPayout, payout_id)
    if kept.sent.status == "pending":
        _end(sim, kept, is_success=not sim.faults.happens("payout_error"))


def succeed(sim: Simulation, payout_id: str) -> KeptPayout:
    """By hand: a pending one succeeds."""
    return _end(sim, _in(sim, payout_id, "pending"), is_success=True)


def fail(sim: Simulation, payout_id: str) -> KeptPayout:
    """By hand: a pending one fails."""
    return _end(sim, _in(sim, payout_id, "pending"), is_success=False)


def come_back(sim: Simulation, payout_id: str) -> KeptPayout:
    """The payee's bank sends the money of a payout that succeeded back."""
    kept = _in(sim, payout_id, "success")
    timers.drop(sim, "payout_return", payout_id)
    sent = kept.sent
    _become(sim, kept, "error", "payout.failed")
    back = Entry("payout_return", new_id(), "", sent.id, sent.reference, sent.payment.currency, sent.payment.amount)
    entries.record(sim.book, back)
    return kept


def come_back_later(sim: Simulation, payout_id: str) -> None:
    """By the fault."""
    if load(sim.book, KeptPayout, payout_id).sent.status == "success":
        come_back(sim, payout_id)


def _in(sim: Simulation, payout_id: str, status: str) -> KeptPayout:
    kept = load(sim.book, KeptPayout, payout_id)
    if kept.sent.status != status:
        raise Refused(f"The payout is {kept.sent.status}, not {status}.", "payout_status_error")
    return kept


def _end(sim: Simulation, kept: KeptPayout, *, is_success: bool) -> KeptPayout:
    sent = kept.sent
    if sent.status == "pending":
        timers.drop(sim, "payout", sent.id)
        entries.add_pending(sim.book, sent.payment.currency, OUTGOING, -sent.payment.amount)
    if not is_success:
        _become(sim, kept, "error", "payout.failed")
        return kept
    sent.payment.paid_on = sent.payment.remote_paid_on = sim.book.now()
    _become(sim, kept, "success", "payout.success")
    # every success is an entry: one that came back and is executed again leaves twice and comes back once
    entries.record(sim.book, Entry("payout", sent.id, sent.id, "", sent.reference, sent.payment.currency, sent.payment.amount))
    if sim.faults.happens("payout_return"):
        timers.put(sim, "payout_return", sent.id, sim.wait_s(RETURN_AFTER_S))
    return kept


def _become(sim: Simulation, kept: KeptPayout, status: str, event_type: str) -> None:
    kept.sent.become(status, sim.book.now())
    save(sim.book, kept)
    events.emit(sim, kept.sent, event_type)
