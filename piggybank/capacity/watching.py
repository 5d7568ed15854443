"""Alerts that fire and end, written down: each once, whoever watches, and told until whoever should know has been told.

Telling is another matter than firing: a channel that fails is tried again each minute, and one that was told is not told twice. A worker
claims what it tells for a while, since nobody is written to inside a transaction.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct
from sqlalchemy import RowMapping, text

from piggybank import ids
from piggybank.capacity import alerts, usage
from piggybank.capacity.alerts import Severity
from piggybank.db.engines import Read, Write

KEPT = timedelta(days=400)
LISTED_MOST = 200
CLAIMED_FOR = timedelta(minutes=2)  # so long another worker leaves it to who claimed it
TOLD_WITHIN = timedelta(days=1)  # older news is none

_FIRING = text("SELECT name, severity, since FROM alerts WHERE resolved_at IS NULL")
_FIRE = text("""
INSERT INTO alerts (id, name, severity, since, value, threshold, message)
VALUES (:id, :name, :severity, :since, :value, :threshold, :message)
ON CONFLICT (name, severity) WHERE resolved_at IS NULL DO UPDATE SET value = excluded.value, message = excluded.message
RETURNING xmax = 0 AS new
""")
_RESOLVE = text("UPDATE alerts SET resolved_at = :at WHERE name = :name AND severity = :severity AND resolved_at IS NULL RETURNING 1")
_PRUNE = text("DELETE FROM alerts WHERE resolved_at < :before RETURNING 1")
_LIST = {
    "firing": text("SELECT * FROM alerts WHERE resolved_at IS NULL ORDER BY since DESC, id DESC LIMIT :limit"),
    "all": text("SELECT * FROM alerts ORDER BY since DESC, id DESC LIMIT :limit"),
}

# What nobody has told yet through one of the channels; of one that has ended, both.
_UNTOLD = """
coalesce(resolved_at, since) > :since
  AND NOT (told @> CAST(:firing AS text[]) AND (resolved_at IS NULL OR told @> CAST(:resolved AS text[])))
"""
_CLAIM = text(f"""
UPDATE alerts
SET claimed_until = :until
WHERE id IN (
    SELECT id FROM alerts
    WHERE {_UNTOLD} AND (claimed_until IS NULL OR claimed_until < :now)
    ORDER BY since
    LIMIT 50
    FOR UPDATE SKIP LOCKED
)
RETURNING *
""")
_WAITS = text(f"SELECT EXISTS (SELECT FROM alerts WHERE {_UNTOLD})")
_TOLD = text("UPDATE alerts SET told = CAST(:told AS text[]), claimed_until = NULL WHERE id = :id")

State = Literal["firing", "all"]


class Fired(Struct, frozen=True, kw_only=True):
    """An alert that fires, or did. `value` is the last one that was measured."""

    id: UUID
    name: str
    severity: Severity
    since: datetime
    value: float
    threshold: float
    message: str
    resolved_at: datetime | None
    told: list[str]
    claimed_until: datetime | None

    @property
    def news(self) -> list[Literal["firing", "resolved"]]:
        """What there is to tell."""
        return ["firing"] if self.resolved_at is None else ["firing", "resolved"]


async def watch(write: Write, at: datetime, pace: float) -> tuple[int, int]:
    """Compare the minutes up to the one that begins at `at`; how many alerts fire anew, and how many have ended."""
    minutes = dict(await usage.noted(write, at - alerts.longest(), at))
    found = {
        (alert.name, alert.severity): (alert, value)
        for alert in alerts.table()
        if (value := alerts.firing(alert, minutes, at, pace)) is not None
    }
    fired = 0
    for (name, severity), (alert, value) in found.items():
        row = {
            "id": ids.new_id(0, time.time_ns()),
            "name": name,
            "severity": severity,
            "since": datetime.now(UTC),
            "value": value,
            "threshold": alert.threshold,
            "message": alert.message(value),
        }
        fired += bool((await write.execute(_FIRE, row)).scalar_one())
    resolved = 0
    for name, severity, since in (await write.execute(_FIRING)).all():
        known = alerts.named(name, severity)
        if known is None or ((name, severity) not in found and alerts.is_over(known, minutes, at, since, pace)):
            ended = {"name": name, "severity": severity, "at": datetime.now(UTC)}
            resolved += len((await write.execute(_RESOLVE, ended)).all())
    return fired, resolved


async def listed(read: Read, state: State, limit: int = LISTED_MOST) -> list[Fired]:
    """The newest first."""
    return [_fired(row) for row in (await read.execute(_LIST[state], {"limit": limit})).mappings()]


async def claim(write: Write, now: datetime, channels: Sequence[str]) -> list[Fired]:
    """What one of the channels has not heard of; nobody else tells it meanwhile."""
    given = {**_wanted(now, channels), "now": now, "until": now + CLAIMED_FOR}
    return [_fired(row) for row in (await write.execute(_CLAIM, given)).mappings()]


async def waits(read: Read, now: datetime, channels: Sequence[str]) -> bool:
    """Whether one of the channels has not heard of something, whoever is to tell it."""
    return bool(await read.scalar(_WAITS, _wanted(now, channels)))


def _wanted(now: datetime, channels: Sequence[str]) -> dict[str, Any]:
    return {
        "firing": [f"{channel}:firing" for channel in channels],
        "resolved": [f"{channel}:resolved" for channel in channels],
        "since": now - TOLD_WITHIN,
    }


async def told(write: Write, alert: Fired, by: Sequence[str]) -> None:
    """These have heard of it now, beside those who had."""
    await write.execute(_TOLD, {"id": alert.id, "told": sorted({*alert.told, *by})})


async def prune(write: Write, now: datetime) -> int:
    """Forget what ended long ago."""
    return len((await write.execute(_PRUNE, {"before": now - KEPT})).all())


def _fired(row: RowMapping) -> Fired:
    return Fired(**row)
