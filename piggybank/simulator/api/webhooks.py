"""Webhooks over HTTP, and the log of their deliveries."""

import sqlite3
from typing import Annotated
from urllib.parse import urlencode

from litestar import Response, delete, get, patch, post, put
from litestar.params import QueryParameter
from msgspec import Meta, Struct

from piggybank.simulator import webhooks
from piggybank.simulator.api.bodies import Asked, Id, Sim, Text, answer, read
from piggybank.simulator.refusals import Refused, required
from piggybank.simulator.simulation import Simulation

PAGE_ROWS = 100
PAGES_MAX = 10_000

Callback = Annotated[str, Meta(max_length=2_000, pattern=r"^https?://[^\s]+$")]
Page = Annotated[int, QueryParameter(ge=1, le=PAGES_MAX)]

_DELIVERIES = """
SELECT d.id, d.object_id, d.receiver, d.url, d.state, d.attempts, d.last_answer, d.created_on, d.updated_on, e.event_type
FROM deliveries AS d JOIN events AS e ON e.seq = d.event ORDER BY d.seq DESC LIMIT ? OFFSET ?
"""


class NewWebhook(Struct, frozen=True, kw_only=True):
    """Which events go where."""

    title: Text = ""
    all_events: bool = False
    events: list[str] = []
    callback: Callback


class Change(Struct, frozen=True, kw_only=True):
    """What is to be different."""

    title: Text | None = None
    all_events: bool | None = None
    events: list[str] | None = None
    callback: Callback | None = None


@post("/api/v1/webhooks")
async def create(request: Asked, sim: Sim) -> Response[bytes]:
    """Register a webhook; keep the public_key of the answer."""
    asked = await read(request, NewWebhook)
    _check_events(asked.events, all_events=asked.all_events)
    made = await webhooks.create(
        sim, title=asked.title, all_events=asked.all_events, events=sorted(set(asked.events)), callback=asked.callback
    )
    return answer(made, 201)


@get("/api/v1/webhooks", sync_to_thread=False)
def listed(sim: Sim) -> Response[bytes]:
    """All of them on one page."""
    return answer({"results": webhooks.listed(sim.book), "next": None, "previous": None})


@get("/api/v1/webhooks/{webhook_id:str}", sync_to_thread=False)
def one(webhook_id: Id, sim: Sim) -> Response[bytes]:
    """With the public key of now."""
    return answer(webhooks.load(sim.book, webhook_id))


@put("/api/v1/webhooks/{webhook_id:str}")
async def replace(request: Asked, webhook_id: Id, sim: Sim) -> Response[bytes]:
    """All of it anew but for its keys."""
    asked = await read(request, NewWebhook)
    change = Change(title=asked.title, all_events=asked.all_events, events=asked.events, callback=asked.callback)
    return answer(_changed(sim, webhook_id, change))


@patch("/api/v1/webhooks/{webhook_id:str}")
async def change(request: Asked, webhook_id: Id, sim: Sim) -> Response[bytes]:
    """Only what is named."""
    return answer(_changed(sim, webhook_id, await read(request, Change)))


@delete("/api/v1/webhooks/{webhook_id:str}", sync_to_thread=False)
def remove(webhook_id: Id, sim: Sim) -> None:
    """What waits for it is given up."""
    webhooks.delete(sim, webhook_id)


@get("/api/v1/webhooks/deliveries", sync_to_thread=False)
def deliveries(sim: Sim, page: Page = 1) -> Response[bytes]:
    """The newest first."""
    found = sim.book.rows(_DELIVERIES, (PAGE_ROWS + 1, (page - 1) * PAGE_ROWS))
    url = f"{sim.config.url}/api/v1/webhooks/deliveries/"
    following = f"{url}?{urlencode({'page': page + 1})}" if len(found) > PAGE_ROWS else None
    previous = f"{url}?{urlencode({'page': page - 1})}" if page > 1 else None
    return answer({"results": [_shown(row) for row in found[:PAGE_ROWS]], "next": following, "previous": previous})


routes = [create, listed, one, replace, change, remove, deliveries]


def _changed(sim: Simulation, webhook_id: str, asked: Change) -> webhooks.Webhook:
    with sim.book.writing():
        webhook = webhooks.load(sim.book, webhook_id)
        for name in ("title", "all_events", "events", "callback"):
            if (wanted := getattr(asked, name)) is not None:
                setattr(webhook, name, wanted)
        _check_events(webhook.events, all_events=webhook.all_events)
        webhooks.save(sim.book, webhook)
    return webhook


def _check_events(events: list[str], *, all_events: bool) -> None:
    if not events and not all_events:
        raise required("events")
    if unknown := sorted(set(events) - webhooks.EVENTS):
        raise Refused(f'"{unknown[0]}" is not a valid choice.', "invalid_choice", field="events")


def _shown(row: sqlite3.Row) -> dict[str, str | int]:
    return {
        "type": "webhook_delivery",
        "id": row["id"],
        "webhook_id": row["receiver"],
        "object_id": row["object_id"],
        "event_type": row["event_type"],
        "status": row["state"],
        "attempts": row["attempts"],
        "last_answer": row["last_answer"],
        "created_on": row["created_on"],
        "updated_on": row["updated_on"],
    }
