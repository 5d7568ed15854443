"""Comparisons with the provider's book, made each night and kept: what differed, and what to do about it.

Run again for the same time one finds the same, and mends nothing twice (see wallet/comparison.py).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import structlog
from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import errors, ids
from piggybank.db import archived
from piggybank.db.engines import Database, Read, Write
from piggybank.ledger import Ledger
from piggybank.revio import Refused, Unclear, Unsent
from piggybank.settings import ProviderMode
from piggybank.wallet import pages
from piggybank.wallet.comparison import Comparison, Item, compare
from piggybank.wallet.provider import Provider

ITEMS_MAX = 10_000  # of one reconciliation; the note says how many more there are

_log = structlog.get_logger()


class Reconciliation(Struct, frozen=True, kw_only=True):
    """Of [since, until). `rows` of the statement, `matched` of them, `mended` just now because their event was lost."""

    id: UUID
    provider: ProviderMode
    since: datetime
    until: datetime
    status: Literal["running", "finished", "failed"]
    rows: int
    matched: int
    mended: int
    note: str
    started_at: datetime
    finished_at: datetime | None
    items_count: int


class ReconciliationPage(Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: list[Reconciliation]
    next_cursor: str | None


class ReconciliationWithItems(Struct, frozen=True, kw_only=True):
    """With everything that differs."""

    reconciliation: Reconciliation
    items: list[Item]


_BEGIN = text("""
INSERT INTO reconciliations (id, provider, since, until, status) VALUES (:id, :provider, :since, :until, 'running')
""")
_FINISH = text("""
UPDATE reconciliations
SET status = :status, rows = :rows, matched = :matched, mended = :mended, note = :note, finished_at = :now
WHERE id = :id
""")
_LIST_ITEM = text("""
INSERT INTO reconciliation_items (reconciliation_id, number, kind, provider_id, payment_id, currency, ours, theirs, what, what_to_do)
VALUES (:id, :number, :kind, :provider_id, :payment_id, :currency, :ours, :theirs, :what, :what_to_do)
""")
_GIVE_UP = text("""
UPDATE reconciliations SET status = 'failed', note = 'its process ended', finished_at = :now
WHERE status = 'running' AND id < :before
""")

_COLUMNS = """
SELECT id, provider, since, until, status, rows, matched, mended, note, finished_at,
       (SELECT count(*) FROM reconciliation_items i WHERE i.reconciliation_id = r.id) AS items_count
FROM reconciliations r
"""
_PAGE = text(_COLUMNS + "WHERE id < :below ORDER BY id DESC LIMIT :limit")
_ONE = text(_COLUMNS + "WHERE id = :id")
_ITEMS = text("""
SELECT kind, provider_id, payment_id, currency, ours, theirs, what, what_to_do
FROM reconciliation_items
WHERE reconciliation_id = :id
ORDER BY number
""")


async def reconcile(
    db: Database, ledger: Ledger, provider: Provider, since: datetime, until: datetime, tell: Callable[[str], None] = lambda _: None
) -> Reconciliation:
    """Compare [since, until); `tell` hears of progress.

    Raises ProviderNotConfigured, ProviderUnavailable (written down as failed), and Archived where our side of that time is in an archive.
    """
    async with db.read() as read:
        await archived.check(read, ids.first_id_at(since))
    client, mode = await provider.client(), await provider.mode()
    run_id = ids.new_id(0)
    async with db.write() as write:
        await write.execute(_BEGIN, {"id": run_id, "provider": mode, "since": since, "until": until})
    run = Comparison(run_id, db, ledger, mode, client, tell)
    note = ""
    try:
        await compare(run, since, until)
        if len(run.items) > ITEMS_MAX:
            note = f"{len(run.items) - ITEMS_MAX} more differences are not listed"
    except (Refused, Unsent, Unclear, ValueError) as cause:
        await _finish(db, run, run_id, "failed", str(cause))
        raise errors.ProviderUnavailable(reason=str(cause)) from cause
    except BaseException:
        await _finish(db, run, run_id, "failed", "it was interrupted")
        raise
    await _finish(db, run, run_id, "finished", note)
    if run.items:
        _log.warning("reconciliation_differs", reconciliation=str(run_id), differences=len(run.items))
    async with db.write() as read:
        return _reconciliation((await read.execute(_ONE, {"id": run_id})).one())


async def _finish(db: Database, run: Comparison, run_id: UUID, status: str, note: str) -> None:
    async with db.write() as write:
        await _list(write, run_id, run.items[:ITEMS_MAX])
        given = {"id": run_id, "status": status, "rows": run.rows, "matched": run.matched, "mended": run.mended, "note": note}
        await write.execute(_FINISH, given | {"now": datetime.now(UTC)})


async def _list(write: Write, run_id: UUID, items: Sequence[Item]) -> None:
    rows = [
        {"id": run_id, "number": number, **{field: getattr(item, field) for field in Item.__struct_fields__}}
        for number, item in enumerate(items, start=1)
    ]
    if rows:
        await write.execute(_LIST_ITEM, rows)


_COMPARED_UNTIL = text("SELECT max(until) FROM reconciliations WHERE status = 'finished' AND provider = :provider")


async def compared_until(db: Database, mode: ProviderMode) -> datetime | None:
    """The end of the last comparison that came to its end."""
    async with db.write() as read:
        until: datetime | None = await read.scalar(_COMPARED_UNTIL, {"provider": mode})
    return until


async def give_up_abandoned(db: Database, *, older_than: timedelta) -> None:
    """Comparisons whose process ended in their middle."""
    now = datetime.now(UTC)
    async with db.write() as write:
        await write.execute(_GIVE_UP, {"now": now, "before": ids.first_id_at(now - older_than)})


async def page(read: Read, *, cursor: str | None = None, limit: int = pages.LIMIT_DEFAULT) -> ReconciliationPage:
    """Raises InvalidRequest."""
    below = pages.LAST_ID if cursor is None else pages.last_id(cursor, "reconciliations")
    rows = (await read.execute(_PAGE, {"below": below, "limit": limit + 1})).all()
    items = [_reconciliation(row) for row in rows[:limit]]
    return ReconciliationPage(items=items, next_cursor=pages.cursor_after(items[-1].id, "reconciliations") if len(rows) > limit else None)


async def one(read: Read, run_id: UUID) -> ReconciliationWithItems:
    """Raises NotFound."""
    row = (await read.execute(_ONE, {"id": run_id})).one_or_none()
    if row is None:
        raise errors.NotFound(reconciliation_id=str(run_id))
    items = [Item(**item._asdict()) for item in await read.execute(_ITEMS, {"id": run_id})]
    return ReconciliationWithItems(reconciliation=_reconciliation(row), items=items)


def _reconciliation(row: Row[Any]) -> Reconciliation:
    return Reconciliation(**row._asdict(), started_at=ids.time_of(row.id))
