"""The provider's events: kept first, once, as they came; applied afterwards, as often as anybody likes.

An event is answered when its body is on disk. What it says is applied by a job, which claims a slice for a while, so a job that dies
leaves nothing behind. What cannot be matched is tried again for RETRIED_FOR_H and stays listed until an operator dismisses it; an operator
may replay any event at any age, since `effects` let nothing happen twice.
"""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any, Literal
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import errors, ids, metrics
from piggybank.db.engines import Database, Read, Write
from piggybank.ledger import Ledger
from piggybank.revio.objects import Snapshot, snapshot
from piggybank.settings import ProviderMode
from piggybank.wallet import pages, settlement
from piggybank.wallet.orders import together
from piggybank.wallet.settlement import Unmatched

BODY_MAX_BYTES = 262_144
LEASE_S = 60.0  # a slice is applied in less
SLICE_EVENTS = 200
AT_ONCE = 6  # events that are applied together: they share batches; fewer than the pool has connections
RETRY_FIRST_S = 5.0  # doubled with every attempt
RETRY_LONGEST_S = 3_600.0
RETRIED_FOR_H = 72  # what was not matched by then is tried again by an operator only
NOTE_MAX_CHARACTERS = 500
OURS = ("purchase.", "payment.", "payout.")  # the rest is news of things that we do not use

EventStatus = Literal["new", "applied", "ignored", "unmatched", "hint"]
Note = Callable[[Write, EventStatus], None]  # writes down who did it, with what became of it
DismissalNote = Callable[[Write, str], None]  # writes down who dismissed it, with the reason for which it was unmatched

_log = structlog.get_logger()


class Event(Struct, frozen=True, kw_only=True):
    """An event as it came, and what became of it. A `hint` is an unsigned callback: it posts nothing.

    `body` names people, so only operators read it; null for an API key.
    """

    id: UUID
    provider: ProviderMode
    status: EventStatus
    event_type: str
    object_id: str
    payment_id: UUID | None
    note: str
    attempts: int
    received_at: datetime
    updated_at: datetime
    body: str | None


class EventPage(Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: list[Event]
    next_cursor: str | None


class _Head(Struct, frozen=True):
    """What is shown of a body that may not be readable otherwise."""

    id: Any = ""
    event_type: Any = ""
    contractReference: Any = ""  # noqa: N815 - the wire's name
    updated_on: Any = 0


_STORE = text("""
INSERT INTO provider_events (id, body_hash, provider, body, status, event_type, object_id, due_at, updated_at)
VALUES (:id, :hash, :provider, :body, :status, :event_type, :object_id, :due_at, :now)
ON CONFLICT (body_hash) DO NOTHING
RETURNING id
""")

_CLAIM = text("""
WITH due AS (
    SELECT id
    FROM provider_events
    WHERE due_at <= :now AND provider = :provider
    ORDER BY due_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE provider_events
SET due_at = :until, attempts = attempts + 1
FROM due
WHERE provider_events.id = due.id
RETURNING provider_events.id, body, attempts
""")

# What was dismissed while a job had it in hand stays so, unless it was about something of ours after all.
_ENDED = text("""
UPDATE provider_events
SET status = :status, payment_id = coalesce(:payment_id, payment_id), note = :note, due_at = :due_at, updated_at = :now
WHERE id = :id AND (status <> 'ignored' OR CAST(:by_hand AS boolean) OR CAST(:status AS text) = 'applied')
""")

_DISMISS = text("""
WITH known AS (
    SELECT id, note FROM provider_events WHERE id = :id AND status = 'unmatched' FOR UPDATE
)
UPDATE provider_events
SET status = 'ignored', note = :note, due_at = NULL, updated_at = :now
FROM known
WHERE provider_events.id = known.id
RETURNING known.note
""")

_ONE = text("""
SELECT id, provider, status, event_type, object_id, payment_id, note, attempts, updated_at, body FROM provider_events WHERE id = :id
""")

# A statement for each set of filters: with all of them in one, no plan could use the index of the one that is given.
_FILTERS = {"payment_id": "payment_id = :payment_id", "object_id": "object_id = :object_id", "status": "status = :status"}
_PAGES = {
    chosen: text(
        "SELECT id, provider, status, event_type, object_id, payment_id, note, attempts, updated_at, body FROM provider_events"
        " WHERE id < :below" + "".join(f" AND {_FILTERS[name]}" for name in chosen) + " ORDER BY id DESC LIMIT :limit"
    )
    for number in range(len(_FILTERS) + 1)
    for chosen in combinations(_FILTERS, number)
}

_RETRY_UNMATCHED = text("""
UPDATE provider_events SET due_at = :now WHERE (status = 'unmatched' OR due_at IS NOT NULL) AND provider = :provider RETURNING id
""")

_UNSTICK = text("""
UPDATE provider_events SET due_at = :now WHERE status = 'new' AND (due_at IS NULL OR due_at > :latest) RETURNING id
""")


async def receive(db: Database, mode: ProviderMode, body: bytes, *, signed: bool = True) -> bool:
    """Keep a body; False when it was kept before. Raises DatabaseUnavailable: then nothing is kept, and the sender tries again."""
    now = datetime.now(UTC)
    head = _head(body)
    # an unsigned copy of a signed body must not take its place
    digest = hashlib.sha256((b"" if signed else b"unsigned:") + body).digest()
    given = {
        "id": ids.new_id(0),
        "hash": digest,
        "provider": mode,
        "body": body,
        "status": "new" if signed else "hint",
        "event_type": head.event_type,
        "object_id": head.id or head.contractReference,
        "due_at": now if signed else None,
        "now": now,
    }
    async with db.write(replays=True) as write:
        new = await write.scalar(_STORE, given) is not None
    if new and signed and isinstance(head.updated_on, int) and head.updated_on > 0:
        metrics.WEBHOOK_LAG.observe(max(0.0, now.timestamp() - head.updated_on))
    return new


async def apply_due(db: Database, ledger: Ledger, mode: ProviderMode) -> int:
    """Apply one slice of what waits; answers how many."""
    now = datetime.now(UTC)
    async with db.write() as write:
        given = {"now": now, "provider": mode, "limit": SLICE_EVENTS, "until": now + timedelta(seconds=LEASE_S)}
        claimed = (await write.execute(_CLAIM, given)).all()
    turns = asyncio.Semaphore(AT_ONCE)  # in any order: that is what stamps and effects are for

    async def apply(row: Row[Any]) -> None:
        async with turns:
            await _apply(db, ledger, mode, row)

    await together(apply(row) for row in claimed)
    return len(claimed)


async def replay(db: Database, ledger: Ledger, mode: ProviderMode, event_id: UUID, by_hand: Note) -> Event:
    """Apply an event again, now, and write down who did. Raises NotFound, and what `Ledger.submit` raises."""
    async with db.read() as read:
        row = (await read.execute(_ONE, {"id": event_id})).one_or_none()
    if row is None:
        raise errors.NotFound(event_id=str(event_id))
    if row.status == "hint":
        raise errors.NotReplayable(event_id=str(event_id))
    await _apply(db, ledger, mode, row, by_hand)
    async with db.write() as read_back:
        return _event((await read_back.execute(_ONE, {"id": event_id})).one())


async def dismiss(db: Database, event_id: UUID, note: str, by_hand: DismissalNote) -> Event:
    """It is no concern of ours: nothing of it was posted, and nobody is told of it any more. Raises NotFound and NotUnmatched."""
    given = {"id": event_id, "note": f"dismissed: {note}"[:NOTE_MAX_CHARACTERS].replace("\0", ""), "now": datetime.now(UTC)}
    async with db.write() as write:
        was = await write.scalar(_DISMISS, given)
        found = await one(write, event_id)
        if was is None:
            raise errors.NotUnmatched(event_id=str(event_id), event_status=found.status)
        by_hand(write, was)
    return found


async def retry_unmatched(db: Database, mode: ProviderMode) -> int:
    """What was not matched is due now, at any age; answers how many."""
    async with db.write() as write:
        return len((await write.execute(_RETRY_UNMATCHED, {"now": datetime.now(UTC), "provider": mode})).all())


async def unstick(db: Database) -> int:
    """Events that nobody has in hand any more, whatever their `due_at` says; answers how many."""
    now = datetime.now(UTC)
    async with db.write() as write:
        found = (await write.execute(_UNSTICK, {"now": now, "latest": now + timedelta(seconds=RETRY_LONGEST_S + LEASE_S)})).all()
    if found:
        _log.warning("provider_events_were_stuck", events=len(found))
    return len(found)


async def one(read: Read, event_id: UUID) -> Event:
    """Raises NotFound."""
    row = (await read.execute(_ONE, {"id": event_id})).one_or_none()
    if row is None:
        raise errors.NotFound(event_id=str(event_id))
    return _event(row)


async def page(
    read: Read,
    *,
    status: EventStatus | None = None,
    object_id: str | None = None,
    payment_id: UUID | None = None,
    cursor: str | None = None,
    limit: int = pages.LIMIT_DEFAULT,
) -> EventPage:
    """A page of events. Raises InvalidRequest."""
    scope = (status or "", object_id or "", str(payment_id or ""))
    below = pages.LAST_ID if cursor is None else pages.last_id(cursor, "provider-events", *scope)
    filters = {"payment_id": payment_id, "object_id": object_id, "status": status}
    given = {name: value for name, value in filters.items() if value is not None}
    rows = (await read.execute(_PAGES[tuple(given)], {**given, "below": below, "limit": limit + 1})).all()
    items = [_event(row) for row in rows[:limit]]
    more = len(rows) > limit
    return EventPage(items=items, next_cursor=pages.cursor_after(items[-1].id, "provider-events", *scope) if more else None)


async def _apply(db: Database, ledger: Ledger, mode: ProviderMode, row: Row[Any], by_hand: Note | None = None) -> None:
    """Apply one event and write down what became of it. What may pass leaves it due again; `by_hand` it is raised."""
    try:
        found = _read(row.body)
        if found is None:
            await _end(db, row.id, "ignored", by_hand, note="nothing that we use")
            return
        applied = await settlement.apply(db, ledger, mode, found)
    except Unmatched as unmatched:
        await _end(db, row.id, "unmatched", by_hand, note=str(unmatched), due_at=_again(row))
    except errors.Error as error:
        if by_hand:
            raise
        await _put_off(db, row, error.code)
    except Exception:
        if by_hand:
            raise
        _log.exception("provider_event_failed", provider_event=str(row.id), attempt=row.attempts)
        await _put_off(db, row, "failed")
    else:
        await _end(db, row.id, "applied", by_hand, payment_id=applied.payment_id, note=applied.note)


def _read(body: bytes) -> Snapshot | None:
    """None for what is no concern of ours. Raises Unmatched when it is, and cannot be read."""
    if not str(_head(body).event_type).startswith(OURS):
        return None
    try:
        return snapshot(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Unmatched(f"cannot be read: {cause}") from cause


def _head(body: bytes) -> _Head:
    try:
        head = msgspec.json.decode(body, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Head()
    words = {name: _word(getattr(head, name)) for name in ("id", "event_type", "contractReference")}
    return msgspec.structs.replace(head, **words)


def _word(value: Any) -> str:
    """As PostgreSQL can store it."""
    return str(value)[:200].replace("\0", "") if isinstance(value, str | int) else ""


def _again(row: Row[Any]) -> datetime | None:
    """When what was not matched is tried again; not at all once it is old."""
    now = datetime.now(UTC)
    return now + timedelta(seconds=_pause_s(row.attempts)) if now - ids.time_of(row.id) < timedelta(hours=RETRIED_FOR_H) else None


def _pause_s(attempts: int) -> float:
    return float(min(RETRY_FIRST_S * 2 ** min(attempts, 20), RETRY_LONGEST_S))


async def _put_off(db: Database, row: Row[Any], why: str) -> None:
    await _end(db, row.id, "new", note=f"tried again: {why}", due_at=datetime.now(UTC) + timedelta(seconds=_pause_s(row.attempts)))


async def _end(
    db: Database,
    event_id: UUID,
    status: EventStatus,
    by_hand: Note | None = None,
    *,
    payment_id: UUID | None = None,
    note: str = "",
    due_at: datetime | None = None,
) -> None:
    given = {
        "id": event_id,
        "status": status,
        "payment_id": payment_id,
        "note": note[:NOTE_MAX_CHARACTERS].replace("\0", ""),
        "due_at": due_at,
        "by_hand": by_hand is not None,
        "now": datetime.now(UTC),
    }
    async with db.write() as write:
        await write.execute(_ENDED, given)
        if by_hand:
            by_hand(write, status)


def _event(row: Row[Any]) -> Event:
    return Event(
        id=row.id,
        provider=row.provider,
        status=row.status,
        event_type=row.event_type,
        object_id=row.object_id,
        payment_id=row.payment_id,
        note=row.note,
        attempts=row.attempts,
        received_at=ids.time_of(row.id),
        updated_at=row.updated_at,
        body=row.body.decode("utf-8", "replace"),
    )
