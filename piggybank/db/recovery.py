"""Whether a database is in recovery: restored from a backup, and not yet compared with what the provider did since.

It opens for reading only (`db/writes.py`), so nobody writes, whichever version of the program comes along; the row in `restores` is why,
which lets processes say so at once, and stop their jobs. What is made known of backups is in tables, too: every process can read those.
"""

from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
from msgspec import Struct

from piggybank import ids
from piggybank.db import acts, writes

SUPERSEDED = "(another copy)"  # in the place of a backup's id
_END = "UPDATE restores SET finished_at = now(), report = $1 WHERE finished_at IS NULL RETURNING backup_id"
RECOVERING = "EXISTS (SELECT FROM restores WHERE finished_at IS NULL)"  # of a statement that reads the installation's row


class Restore(Struct, frozen=True, kw_only=True):
    """A restore: from which backup, and the moment up to which the database knew everything."""

    id: UUID
    backup_id: str
    point: datetime
    restored_at: datetime
    finished_at: datetime | None


async def begin(owner_url: str, backup_id: str, point: datetime) -> None:
    """Put a database that was restored just now into recovery, with an epoch that no cache has seen. For the owner, before anybody else.

    `point`: up to there it knows everything.
    """
    connection = await writes.open_mover(owner_url)
    try:
        await writes.stop(connection)
        async with connection.transaction():
            await connection.execute("UPDATE restores SET finished_at = now() WHERE finished_at IS NULL")  # of the backup's own past
            await connection.execute(
                "INSERT INTO restores (id, backup_id, point, restored_at) VALUES ($1, $2, $3, now())", ids.new_id(0), backup_id, point
            )
            await connection.execute("UPDATE installation SET epoch = $1", uuid4().hex[:8])
            if backup_id != SUPERSEDED:  # that is nobody's act
                await acts.record(connection, "restore.begin", f"backup:{backup_id}", {"point": point})
    finally:
        await connection.close()


async def stand_down(owner_url: str, application_role: str, point: datetime, why: str = SUPERSEDED) -> None:
    """Another copy of this installation goes on, or went on: this one is only read until somebody finishes it as one that was restored.

    `point`: up to there the two are the same.
    """
    await begin(owner_url, why, point)
    connection = await writes.open_mover(owner_url)
    try:
        await writes.end_sessions(connection, application_role)
    finally:
        await connection.close()


async def newest_moment(owner_url: str) -> datetime:
    """Up to there a database that was restored knows everything, at least: its worker's last heartbeat, else when it was made."""
    connection = await writes.open_mover(owner_url)
    try:
        beat: datetime | None = await connection.fetchval("SELECT nullif(beat, '-infinity') FROM heartbeat")
        return beat or ids.time_of(await connection.fetchval("SELECT id FROM installation"))
    finally:
        await connection.close()


async def goes_on(owner_url: str, application_role: str, since: datetime) -> bool:
    """Whether a restore was begun since then; its beginning is brought to its end where that was cut off."""
    connection = await writes.open_mover(owner_url)
    try:
        if not await begun_since(connection, since):
            return False
        if await is_recovering(connection):
            await writes.end_sessions(connection, application_role)
        return True
    finally:
        await connection.close()


async def begun_since(connection: asyncpg.Connection, since: datetime) -> bool:
    """A database of a moment holds no later row: that moment, or when it was asked for, tells this restore from those before it."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM restores WHERE restored_at >= $1)", since))


class Lineage(Struct, frozen=True, kw_only=True):
    """Which copy of which installation a database is: the restores that it comes from, the last one last."""

    installation: str
    restores: list[str]
    point: datetime | None  # of the last one: up to there it is the same as the copy that it was restored from


async def lineage(connection: asyncpg.Connection) -> Lineage:
    """A restore counts when it is finished."""
    finished = await connection.fetch("SELECT id::text AS id, point FROM restores WHERE finished_at IS NOT NULL ORDER BY id")
    installation = await connection.fetchval("SELECT id::text FROM installation")
    point = finished[-1]["point"] if finished else None
    return Lineage(installation=installation, restores=[row["id"] for row in finished], point=point)


async def current(connection: asyncpg.Connection) -> Restore | None:
    """The restore that is not finished."""
    row = await connection.fetchrow("SELECT id, backup_id, point, restored_at, finished_at FROM restores WHERE finished_at IS NULL")
    return Restore(**row) if row else None


async def is_recovering(connection: asyncpg.Connection) -> bool:
    """Also before the migration that knows of it."""
    if await connection.fetchval("SELECT to_regclass('public.restores')") is None:
        return False
    return bool(await connection.fetchval(f"SELECT {RECOVERING}"))


async def end(owner_url: str, application_role: str, report: bytes) -> None:
    """Writes go on from here."""
    connection = await writes.open_mover(owner_url)
    try:
        async with connection.transaction():  # both or none: whoever is killed here finds it in recovery, or finished
            ended = await connection.fetch(_END, report.decode())
            for row in ended:
                await acts.record(connection, "restore.finish", f"backup:{row['backup_id']}")
            await writes.allow(connection)
        await writes.end_sessions(connection, application_role)
    finally:
        await connection.close()
