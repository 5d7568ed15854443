"""Backups that were made: for operators."""

from datetime import datetime
from typing import Annotated

from litestar import get
from msgspec import Meta, Struct
from sqlalchemy import text

from piggybank.db.engines import Current, Database

SHOWN_MAX = 100

_LIST = text("""
SELECT b.id, b.kind, b.started_at, b.finished_at, b.size_bytes, d.at AS drilled_at, d.passed AS drill_passed, d.said AS drill_said
FROM backups b
LEFT JOIN LATERAL (SELECT at, passed, said FROM drills WHERE backup_id = b.id ORDER BY at DESC LIMIT 1) d ON true
ORDER BY b.started_at DESC
LIMIT :limit
""")


class Backup(Struct, frozen=True, kw_only=True):
    """One backup. `drill_*`: the last time that it was restored to see whether it can be; null: never."""

    id: str
    kind: Annotated[str, Meta(description="`base`: with the log, to any moment; `logical`: of its moment.")]
    started_at: datetime
    finished_at: datetime
    size_bytes: int
    drilled_at: datetime | None
    drill_passed: bool | None
    drill_said: str | None


class BackupList(Struct, frozen=True, kw_only=True):
    """Newest first; `says` what an empty list means."""

    items: list[Backup]
    says: str | None


@get("/v1/ops/backups", tags=["operations"], summary="Backups")
async def list_backups(db: Database) -> BackupList:
    """The newest 100 that this database knows of."""
    async with db.read() as read:
        found = await recorded(read)
    return BackupList(items=found, says=None if found else "none recorded")


async def recorded(read: Current) -> list[Backup]:
    """Those that were written down; none where nothing here makes any."""
    return [Backup(**row) for row in (await read.execute(_LIST, {"limit": SHOWN_MAX})).mappings()]


routes = [list_backups]
