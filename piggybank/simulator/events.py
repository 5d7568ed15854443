"""Events: the full object and its `event_type`, for every receiver that wants it.

An event is written in the transaction of what it tells, once, as the bytes that are sent and sent again. There is no event id:
that is how the real API is. The faults of delivery are chosen here, so that they are kept with the row.
"""

import time
from typing import NamedTuple

import msgspec

from piggybank.simulator import webhooks
from piggybank.simulator.book import new_id
from piggybank.simulator.objects import EftCredit, Payment, Payout, Purchase
from piggybank.simulator.simulation import Simulation

COMPANY = "company"  # receiver: a purchase's success_callback, signed with the company's key
EFT = "eft"  # receiver: the EFT callback URL, not signed
LATE_S = 600.0  # `late_event` holds back up to this
REORDER_S = 2.0  # `reorder` holds back up to this
DUPLICATE_S = 5.0  # a duplicate follows within this
BAD_SIGNATURES_MAX = 2  # tries that `bad_signature` spoils

_INSERT_EVENT = "INSERT INTO events (object_id, event_type, body) VALUES (?, ?, ?)"
_WAITS_ALREADY = "SELECT 1 FROM deliveries WHERE receiver = ? AND object_id = ? AND state = 'waiting'"
_INSERT_DELIVERY = """
INSERT INTO deliveries (id, event, object_id, receiver, url, is_head, due_at, bad_signatures, created_on, updated_on)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_COUNT = "UPDATE delivery_counts SET deliveries = deliveries + 1 WHERE state = 'waiting'"


class Receiver(NamedTuple):
    """Who gets it; the URL of a webhook is looked up when it is sent."""

    name: str
    url: str = ""


def emit(sim: Simulation, sent: Purchase | Payment | Payout, event_type: str, *, success_callback: str = "") -> None:
    """Have every webhook that wants this type told, and the success_callback if there is one; inside a transaction."""
    receivers = [Receiver(webhook_id) for webhook_id in webhooks.wanting(sim.book, event_type)]
    if success_callback:
        receivers.append(Receiver(COMPANY, success_callback))
    body = msgspec.json.encode(sent)[:-1] + f',"event_type":"{event_type}"}}'.encode()
    _enqueue(sim, sent.id, event_type, body, receivers)


def emit_credit(sim: Simulation, sent: EftCredit) -> None:
    """Tell the EFT callback URL, if one is registered, how a credit stands; inside a transaction."""
    row = sim.book.row("SELECT client_id, url, version FROM callbacks WHERE callback_type = 'EFT_PAYMENT'")
    if row is None:
        return
    about = {"clientId": row["client_id"], "callbackType": "EFT_PAYMENT", "callbackVersion": row["version"]}
    body = msgspec.json.encode(about | msgspec.to_builtins(sent))
    _enqueue(sim, sent.id, f"EFT_PAYMENT.{sent.status}", body, [Receiver(EFT, row["url"])])


def _enqueue(sim: Simulation, object_id: str, event_type: str, body: bytes, receivers: list[Receiver]) -> None:
    if not receivers:
        return
    event = sim.book.execute(_INSERT_EVENT, (object_id, event_type, body)).lastrowid
    now, created_on = time.time(), sim.book.now()
    for receiver in receivers:
        due_at = now + _held_back_s(sim)
        spoiled = sim.faults.dice.randint(1, BAD_SIGNATURES_MAX) if sim.faults.happens("bad_signature") else 0
        moments = [due_at]
        if sim.faults.happens("dup_event"):  # behind the first in the object's own order; events of others come between
            moments.append(due_at + sim.up_to_s(DUPLICATE_S))
        for moment in moments:
            is_head = sim.book.row(_WAITS_ALREADY, (receiver.name, object_id)) is None
            row = (new_id(), event, object_id, receiver.name, receiver.url, is_head, moment, spoiled, created_on, created_on)
            sim.book.execute(_INSERT_DELIVERY, row)
            sim.book.execute(_COUNT)
    sim.deliveries_changed.set()


def _held_back_s(sim: Simulation) -> float:
    late_s = sim.up_to_s(LATE_S) if sim.faults.happens("late_event") else 0
    return late_s + (sim.up_to_s(REORDER_S) if sim.faults.happens("reorder") else 0)
