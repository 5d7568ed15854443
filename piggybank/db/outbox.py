"""Taking from the outbox: rows that were committed with the change that they tell about, deleted when their effect is done.

Never by a high-water mark: a row that is committed late has an old id. No network call happens while a row is locked, so there
are two ways to take:

- `due` only looks. For effects that may happen twice (the cache takes a value by its version): two sweeps that do the same
  thing harm nobody, nothing is written before the work, and a killed sweep leaves nothing behind that must run out first.
- `claim` moves `due_at` ahead under FOR UPDATE SKIP LOCKED and commits before the work. For effects that people would see twice
  (a mail): another sweep leaves the row alone until the lease ends, so a mail is sent again only after a crash in its middle.

A row whose effect failed is put off by `due_at` and `attempts`, and the others pass it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgspec import Struct
from sqlalchemy import text

from piggybank import ids
from piggybank.db.engines import Current, Write

COUNTED_MAX = 10_000  # rows


class Failing(Struct, frozen=True, kw_only=True):
    """A row whose effect failed, and when it is tried again. Its payload is nobody's to see: it may hold an address or a link."""

    id: UUID
    topic: str
    attempts: int
    made_at: datetime
    due_at: datetime | None


class Row(Struct, frozen=True):
    """`payload` is JSON."""

    id: UUID
    topic: str
    attempts: int
    payload: str


_DUE = text("""
SELECT id, topic, attempts, CAST(payload AS text) AS payload
FROM outbox
WHERE id > :after AND id < :before AND topic = :topic AND (due_at IS NULL OR due_at <= :now)
ORDER BY id
LIMIT :limit
""")

_CLAIM = text("""
WITH due AS (
    SELECT id, bucket
    FROM outbox
    WHERE id < :before AND topic = :topic AND (due_at IS NULL OR due_at <= :now)
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE outbox
SET due_at = :lease_until
FROM due
WHERE outbox.id = due.id AND outbox.bucket = due.bucket
RETURNING outbox.id, topic, attempts, CAST(payload AS text) AS payload
""")

# SKIP LOCKED: the ledger deletes rows of its own in its batches, and is never to wait for a sweep that waits for it.
_DELETE = text("""
WITH done AS (
    SELECT id, bucket
    FROM outbox
    WHERE bucket = ANY(CAST(:buckets AS smallint[])) AND id = ANY(CAST(:ids AS uuid[]))
    ORDER BY id
    FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox USING done WHERE outbox.id = done.id AND outbox.bucket = done.bucket
""")

_DELETE_OLD = text("""
WITH old AS (
    SELECT id, bucket
    FROM outbox
    WHERE id < :before AND topic = :topic
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
DELETE FROM outbox USING old WHERE outbox.id = old.id AND outbox.bucket = old.bucket RETURNING outbox.id
""")

# What waits is counted up to a bound: a long outage leaves many, and nobody needs the number then.
_WAITING = text("SELECT count(*) AS waiting, min(id::text)::uuid AS oldest FROM (SELECT id FROM outbox ORDER BY id LIMIT :most) AS head")

_FAILING = text("""
SELECT id, topic, attempts, due_at FROM (SELECT * FROM outbox ORDER BY id LIMIT :most) AS head WHERE attempts > 0 ORDER BY id LIMIT :limit
""")

_HURRY = text("UPDATE outbox SET due_at = NULL WHERE bucket = :bucket AND id = :id AND attempts > 0 RETURNING topic")

_PUT_OFF = text("""
UPDATE outbox SET attempts = attempts + 1, due_at = :until WHERE bucket = :bucket AND id = :id
""")


async def due(read: Current, topic: str, *, older_than_s: float, limit: int, after: UUID) -> list[Row]:
    """Rows of `topic` behind `after` that wait for longer than `older_than_s`, oldest first."""
    now = datetime.now(UTC)
    given = {"after": after, "before": _before(now, older_than_s), "topic": topic, "now": now, "limit": limit}
    return [Row(*row) for row in await read.execute(_DUE, given)]


async def claim(write: Write, topic: str, *, older_than_s: float, limit: int, lease_s: float) -> list[Row]:
    """The same, for nobody else until `lease_s` seconds have passed."""
    now = datetime.now(UTC)
    given = {
        "before": _before(now, older_than_s),
        "topic": topic,
        "now": now,
        "limit": limit,
        "lease_until": now + timedelta(seconds=lease_s),
    }
    return sorted((Row(*row) for row in await write.execute(_CLAIM, given)), key=lambda row: row.id)


async def delete(write: Write, row_ids: Sequence[UUID]) -> None:
    """Their effect is done. What somebody else is deleting is left to them."""
    if row_ids:
        await write.execute(_DELETE, {"buckets": list({ids.bucket_of(row_id) for row_id in row_ids}), "ids": list(row_ids)})


async def delete_older(write: Write, topic: str, *, older_than_s: float, limit: int) -> int:
    """Rows that are too old to matter; answers how many."""
    given = {"before": _before(datetime.now(UTC), older_than_s), "topic": topic, "limit": limit}
    return len((await write.execute(_DELETE_OLD, given)).all())


async def put_off(write: Write, row: Row, *, pause_s: float) -> None:
    """Its effect failed: not before `pause_s` seconds again."""
    given = {"bucket": ids.bucket_of(row.id), "id": row.id, "until": datetime.now(UTC) + timedelta(seconds=pause_s)}
    await write.execute(_PUT_OFF, given)


async def waiting(read: Current) -> tuple[int, datetime | None]:
    """How many rows wait, counted up to COUNTED_MAX, and since when the oldest does."""
    row = (await read.execute(_WAITING, {"most": COUNTED_MAX})).one()
    return row.waiting, None if row.oldest is None else ids.time_of(row.oldest)


async def failing(read: Current, *, limit: int) -> list[Failing]:
    """Rows that failed before, oldest first."""
    rows = await read.execute(_FAILING, {"most": COUNTED_MAX, "limit": limit})
    return [Failing(id=row.id, topic=row.topic, attempts=row.attempts, made_at=ids.time_of(row.id), due_at=row.due_at) for row in rows]


async def hurry(write: Write, row_id: UUID) -> str | None:
    """A row that failed is due at once; its topic, or None where there is no such row."""
    topic: str | None = await write.scalar(_HURRY, {"bucket": ids.bucket_of(row_id), "id": row_id})
    return topic


def _before(now: datetime, older_than_s: float) -> UUID:
    return ids.first_id_at(now - timedelta(seconds=older_than_s))
