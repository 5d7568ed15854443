"""What is known of backups, in tables that every process can read: the last one, how far the log is archived, the last drill."""

from datetime import datetime

import asyncpg
from msgspec import Struct

from piggybank import ids
from piggybank.db import writes


class Standing(Struct, frozen=True, kw_only=True):
    """The newest of each; None: there is none."""

    backup_id: str | None = None
    backup_kind: str | None = None
    backup_target: str | None = None
    backup_at: datetime | None = None
    backup_size_bytes: int | None = None
    wal_written_at: datetime | None = None  # of the newest archived segment: up to there everything can be restored
    drill_at: datetime | None = None
    drill_passed: bool | None = None
    drill_said: str | None = None
    restored_at: datetime | None = None  # when a restore was finished here
    lost_payments: int = 0  # that the provider made in the time that was lost, and that nobody has asked for again


STANDING = """
SELECT b.id AS backup_id, b.kind AS backup_kind, b.target AS backup_target, b.finished_at AS backup_at, b.size_bytes AS backup_size_bytes,
       w.written_at AS wal_written_at, d.at AS drill_at, d.passed AS drill_passed, d.said AS drill_said,
       (SELECT max(finished_at) FROM restores) AS restored_at,
       (SELECT count(*) FROM lost_payments WHERE payment_id IS NULL AND settled_at IS NULL) AS lost_payments
FROM (SELECT) AS one
LEFT JOIN (SELECT * FROM backups ORDER BY finished_at DESC LIMIT 1) AS b ON true
LEFT JOIN archived_wal AS w ON true
LEFT JOIN (SELECT * FROM drills ORDER BY at DESC LIMIT 1) AS d ON true
"""


async def standing(connection: asyncpg.Connection) -> Standing:
    """Works with either role."""
    return Standing(**await connection.fetchrow(STANDING))


async def newest_at(connection: asyncpg.Connection, kind: str, target: str) -> datetime | None:
    """When the last one of that kind was made at that target; None: there is none."""
    at: datetime | None = await connection.fetchval("SELECT max(finished_at) FROM backups WHERE kind = $1 AND target = $2", kind, target)
    return at


async def record(
    owner_url: str, backup_id: str, kind: str, target: str, started_at: datetime, finished_at: datetime, size_bytes: int
) -> None:
    """A backup that is whole."""
    await _write(
        owner_url,
        "INSERT INTO backups (id, kind, target, started_at, finished_at, size_bytes) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT DO NOTHING",
        *(backup_id, kind, target, started_at, finished_at, size_bytes),
    )


async def record_wal(owner_url: str, name: str, written_at: datetime) -> None:
    """The newest segment that is at the target."""
    await _write(
        owner_url,
        "INSERT INTO archived_wal (name, written_at, archived_at) VALUES ($1, $2, now())"
        " ON CONFLICT (one_row) DO UPDATE SET name = $1, written_at = $2, archived_at = now()",
        *(name, written_at),
    )


async def record_drill(owner_url: str, backup_id: str, at: datetime, seconds: float, said: str, *, passed: bool) -> None:
    """How a drill ended."""
    await _write(
        owner_url,
        "INSERT INTO drills (id, backup_id, at, seconds, passed, said) VALUES ($1, $2, $3, $4, $5, $6)",
        *(ids.new_id(0), backup_id, at, seconds, passed, said),
    )


async def forget(owner_url: str, backup_ids: list[str]) -> None:
    """They are not at the target any more."""
    await _write(owner_url, "DELETE FROM backups WHERE id = ANY($1)", backup_ids)


async def _write(owner_url: str, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(owner_url, timeout=writes.CONNECT_TIMEOUT_S)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()
