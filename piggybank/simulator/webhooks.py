"""Webhooks: who wants which events, each with a key pair of its own."""

import msgspec
from msgspec import Struct

from piggybank.simulator import keys
from piggybank.simulator.book import Book, new_id
from piggybank.simulator.refusals import Refused, not_found
from piggybank.simulator.simulation import Simulation

WEBHOOKS_MAX = 100

_EVENTS_OF = {
    "purchase": (
        "created",
        "paid",
        "payment_failure",
        "cancelled",
        "viewed",
        "settled",
        "pending_execute",
        "pending_charge",
        "hold",
        "captured",
        "pending_capture",
        "capture_failure",
        "released",
        "pending_release",
        "release_failure",
        "preauthorized",
        "pending_refund",
        "refund_failure",
        "recurring_token_deleted",
        "pending_recurring_token_delete",
        "subscription_charge_failure",
    ),
    "payment": ("refunded", "charged_back", "chargeback_reversed"),
    "payout": ("created", "pending", "success", "failed"),
    "billing_template_client": ("subscription_billing_cancelled",),
}
EVENTS = frozenset(f"{kind}.{name}" for kind, names in _EVENTS_OF.items() for name in names)


class Webhook(Struct, kw_only=True):
    """A webhook as it is sent."""

    type: str = "webhook"
    id: str
    title: str
    all_events: bool
    events: list[str]
    callback: str
    public_key: str
    is_test: bool = True
    created_on: int
    updated_on: int


async def create(sim: Simulation, *, title: str, all_events: bool, events: list[str], callback: str) -> Webhook:
    """A new webhook with a new key pair."""
    private = await keys.new_private()
    with sim.book.writing():
        if sim.book.value("SELECT count(*) FROM webhooks") >= WEBHOOKS_MAX:
            raise Refused(f"There can be at most {WEBHOOKS_MAX} webhooks.", "limit")
        now = sim.book.now()
        made = Webhook(
            id=new_id(),
            title=title,
            all_events=all_events,
            events=events,
            callback=callback,
            public_key=keys.public_of(private),
            created_on=now,
            updated_on=now,
        )
        row = (made.id, msgspec.json.encode(made), private)
        sim.book.execute("INSERT INTO webhooks (id, body, private_key) VALUES (?, ?, ?)", row)
    return made


def listed(book: Book) -> list[Webhook]:
    """All, the oldest first; there are at most WEBHOOKS_MAX."""
    return [msgspec.json.decode(row["body"], type=Webhook) for row in book.rows("SELECT body FROM webhooks ORDER BY seq")]


def load(book: Book, webhook_id: str) -> Webhook:
    """One webhook; refuses with a 404."""
    row = book.row("SELECT body FROM webhooks WHERE id = ?", (webhook_id,))
    if row is None:
        raise not_found()
    return msgspec.json.decode(row["body"], type=Webhook)


def save(book: Book, webhook: Webhook) -> None:
    """Write a changed webhook; inside a transaction."""
    webhook.updated_on = book.now()
    book.execute("UPDATE webhooks SET body = ? WHERE id = ?", (msgspec.json.encode(webhook), webhook.id))


def delete(sim: Simulation, webhook_id: str) -> None:
    """Forget a webhook; what waits for it is given up."""
    with sim.book.writing():
        load(sim.book, webhook_id)
        sim.book.execute("DELETE FROM webhooks WHERE id = ?", (webhook_id,))
        given_up = sim.book.execute(
            "UPDATE deliveries SET state = 'given_up', is_head = 0, last_answer = 'the webhook was deleted', updated_on = ?"
            " WHERE receiver = ? AND state = 'waiting'",
            (sim.book.now(), webhook_id),
        ).rowcount
        for state, change in (("waiting", -given_up), ("given_up", given_up)):
            sim.book.execute("UPDATE delivery_counts SET deliveries = deliveries + ? WHERE state = ?", (change, state))


async def rotate(sim: Simulation) -> list[Webhook]:
    """Every webhook gets a new pair: what is sent from now on, old events too, is signed with it."""
    fresh = {webhook.id: await keys.new_private() for webhook in listed(sim.book)}
    with sim.book.writing():
        for webhook in listed(sim.book):
            if webhook.id not in fresh:  # it came while the keys were made
                continue
            webhook.public_key = keys.public_of(fresh[webhook.id])
            save(sim.book, webhook)
            sim.book.execute("UPDATE webhooks SET private_key = ? WHERE id = ?", (fresh[webhook.id], webhook.id))
    return listed(sim.book)


def wanting(book: Book, event_type: str) -> list[str]:
    """The ids of the webhooks that want this type."""
    return [webhook.id for webhook in listed(book) if webhook.all_events or event_type in webhook.events]
