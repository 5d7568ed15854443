"""The clockwork: does what the timers say, one transaction each, so that a kill leaves either all of it or the timer."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from piggybank import telemetry
from piggybank.simulator import chargebacks, deliveries, eft_credits, payouts, purchases, refunds, settlements, statements, timers
from piggybank.simulator.simulation import Simulation
from piggybank.simulator.timers import Timer

FAILED_PAUSE_S = 5.0  # real seconds: a timer that fails is a fault of ours and must not spin
LONGEST_WAIT_S = 60.0  # the machine's clock may be set meanwhile

ACTIONS: dict[str, Callable[[Simulation, Timer], object]] = {
    "purchase_overdue": lambda sim, timer: purchases.overdue(sim, timer.subject),
    "purchase_expired": lambda sim, timer: purchases.expired(sim, timer.subject),
    "refund": lambda sim, timer: refunds.finish(sim, timer.subject, int(timer.details)),
    "chargeback": lambda sim, timer: chargebacks.charge_back_later(sim, timer.subject),
    "chargeback_reversal": lambda sim, timer: chargebacks.reverse_later(sim, timer.subject),
    "payout": lambda sim, timer: payouts.finish(sim, timer.subject),
    "payout_return": lambda sim, timer: payouts.come_back_later(sim, timer.subject),
    "credit": lambda sim, timer: eft_credits.finish(sim, timer.subject),
    "credit_return": lambda sim, timer: eft_credits.come_back_later(sim, timer.subject),
    "settlement": lambda sim, timer: settlements.begin(sim),  # noqa: ARG005 - it is about nothing in particular
    "settlement_slice": lambda sim, timer: settlements.go_on(sim, int(timer.subject)),
    "statement": lambda sim, timer: statements.begin(sim, timer.subject),
    "statement_slice": lambda sim, timer: statements.go_on(sim, timer.subject, int(timer.details)),
    "prune": lambda sim, timer: deliveries.prune(sim),  # noqa: ARG005
}

_log = telemetry.logger("simulator")


def wind_up(sim: Simulation) -> None:
    """Have what recurs happen; a restart finds it in the book."""
    with sim.book.writing():
        settlements.ensure_daily(sim)
        deliveries.ensure_pruning(sim)


async def run(sim: Simulation) -> None:
    """Until cancelled."""
    while True:
        sim.timers_changed.clear()
        timer = timers.next_one(sim)
        wait_s = LONGEST_WAIT_S if timer is None else timer.due_at - time.time()
        if timer is not None and wait_s <= 0:
            _do(sim, timer)
            await asyncio.sleep(0)  # requests come first
            continue
        with suppress(TimeoutError):
            async with asyncio.timeout(min(wait_s, LONGEST_WAIT_S)):
                await sim.timers_changed.wait()


def _do(sim: Simulation, timer: Timer) -> None:
    try:
        with sim.book.writing():
            sim.book.execute("DELETE FROM timers WHERE seq = ?", (timer.seq,))
            ACTIONS[timer.action](sim, timer)
    except Exception as cause:
        _log.error("timer_failed", action=timer.action, subject=timer.subject, exc_info=cause)
        with sim.book.writing():
            sim.book.execute("UPDATE timers SET due_at = ? WHERE seq = ?", (time.time() + FAILED_PAUSE_S, timer.seq))
