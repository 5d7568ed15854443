"""Settlement: what is paid becomes settled, and what is available in each currency goes to the bank."""

import asyncio

from msgspec import Struct

from piggybank.simulator import entries, events, timers
from piggybank.simulator.book import new_id
from piggybank.simulator.entries import Entry
from piggybank.simulator.kept_objects import KeptPurchase, load, save
from piggybank.simulator.simulation import Simulation

DAY_S = 86_400.0
SLICE = 100  # purchases of one transaction: others are not to wait long

_PAID = "SELECT id FROM objects WHERE type = 'purchase' AND status = 'paid' AND seq > ? ORDER BY seq LIMIT ?"
_SEQ = "SELECT seq FROM objects WHERE id = ?"


class Settlement(Struct, frozen=True, kw_only=True):
    """What went to the bank in one currency."""

    id: str
    currency: str
    amount: int


async def settle(sim: Simulation) -> tuple[list[Settlement], int]:
    """Settle now: the entries, and how many purchases became settled."""
    with sim.book.writing():
        made = _move(sim)
    purchases, last = 0, 0
    while True:
        with sim.book.writing():
            done, last = settle_slice(sim, last)
        purchases += done
        if done < SLICE:
            return made, purchases
        await asyncio.sleep(0)


def begin(sim: Simulation) -> None:
    """The daily run, inside the clockwork's transaction."""
    _move(sim)
    timers.put(sim, "settlement_slice", "0", 0)
    ensure_daily(sim)


def go_on(sim: Simulation, after: int) -> None:
    """One slice of the daily run."""
    done, last = settle_slice(sim, after)
    if done == SLICE:
        timers.put(sim, "settlement_slice", str(last), 0)


def ensure_daily(sim: Simulation) -> None:
    """Have it happen once a simulated day."""
    if not timers.is_waiting(sim, "settlement"):
        timers.put(sim, "settlement", "", sim.wait_s(DAY_S))


def settle_slice(sim: Simulation, after: int) -> tuple[int, int]:
    """The next purchases that are paid: how many, and the last one's place."""
    found = [row["id"] for row in sim.book.rows(_PAID, (after, SLICE))]
    for purchase_id in found:
        kept = load(sim.book, KeptPurchase, purchase_id)
        kept.settled = True
        kept.sent.become("settled", sim.book.now())
        save(sim.book, kept)
        events.emit(sim, kept.sent, "purchase.settled")
    return len(found), sim.book.value(_SEQ, (found[-1],)) if found else after


def _move(sim: Simulation) -> list[Settlement]:
    """What is promised to refunds and payouts stays."""
    made = []
    for currency, balance in entries.balances(sim.book).items():
        if balance.available_balance > 0:
            settlement = Settlement(id=new_id(), currency=currency, amount=balance.available_balance)
            entries.record(sim.book, Entry("settlement", settlement.id, "", "", "", currency, settlement.amount))
            made.append(settlement)
    return made
