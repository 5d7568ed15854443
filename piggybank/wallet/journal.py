"""The journal: posted transactions of all accounts, newest first, for those who look for one.

No index knows amounts and references of everybody, so a page looks at a bounded stretch of the newest rows, says how far it looked, and
its cursor goes on from there: a rare thing is found in several pages, and none of them takes long.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct, structs
from sqlalchemy import text

from piggybank import ids, money
from piggybank.db.engines import Current
from piggybank.wallet import history, pages
from piggybank.wallet.history import Transaction

LOOKED_AT_MAX = 20_000  # rows a page


class Entry(Transaction, frozen=True, kw_only=True):
    """A transaction, and whose it is."""

    user_id: UUID
    minor_unit: int


class JournalPage(Struct, frozen=True, kw_only=True):
    """Newest first. `looked_until`: nothing newer is missing, so few `items` with a cursor only mean to go on; null: all was looked at.

    `archived_until`: what is older than that and belongs to the list is in the archive's files.
    """

    items: list[Entry]
    next_cursor: str | None
    looked_until: datetime | None
    archived_until: datetime | None


class Filter(Struct, frozen=True, kw_only=True):
    """`least` and `most` are of the amount without its sign."""

    since: datetime | None = None
    until: datetime | None = None
    kind: str | None = None
    currency: str | None = None
    reference: str | None = None
    least: int | None = None
    most: int | None = None


# The id that the stretch ends with; it reads one index and no row.
_EDGE = text("""
SELECT id FROM transactions WHERE id >= :lowest AND id < :below ORDER BY id DESC OFFSET :looked_at LIMIT 1
""")

_PAGE = text("""
SELECT t.id AS transaction_id, t.account_id, a.user_id, a.currency, t.kind, t.amount, t.balance_after, t.sequence, t.transfer_id,
       t.payment_id, t.reverses, t.reference, t.description, CAST(t.metadata AS text) AS metadata
FROM transactions t
JOIN accounts a ON a.bucket = t.bucket AND a.id = t.account_id
WHERE t.id >= :edge AND t.id < :below
  AND (CAST(:kind AS text) IS NULL OR t.kind = :kind)
  AND (CAST(:reference AS text) IS NULL OR t.reference = :reference)
  AND (CAST(:currency AS text) IS NULL OR a.currency = :currency)
  AND (CAST(:least AS bigint) IS NULL OR abs(t.amount) >= :least)
  AND (CAST(:most AS bigint) IS NULL OR abs(t.amount) <= :most)
ORDER BY t.id DESC
LIMIT :limit
""")


# The row that the newest archived month ends before.
_ARCHIVED = text("SELECT max(below::text)::uuid FROM archived_months")


async def page(read: Current, wanted: Filter, *, cursor: str | None = None, limit: int = pages.LIMIT_DEFAULT) -> JournalPage:
    """A page of everybody's transactions. Raises InvalidRequest."""
    lowest, below = pages.id_at(wanted.since, pages.FIRST_ID), pages.id_at(wanted.until, pages.LAST_ID)
    if cursor is not None:
        below = min(below, pages.last_id(cursor, "journal", wanted))
    edge: UUID | None = await read.scalar(_EDGE, {"lowest": lowest, "below": below, "looked_at": LOOKED_AT_MAX - 1})
    given = {
        "edge": edge or lowest,
        "below": below,
        "kind": wanted.kind,
        "reference": wanted.reference,
        "currency": wanted.currency,
        "least": wanted.least,
        "most": wanted.most,
        "limit": limit + 1,
    }
    rows = (await read.execute(_PAGE, given)).all()
    items = [
        Entry(**structs.asdict(history.of_row(row)), user_id=row.user_id, minor_unit=money.MINOR_UNITS[row.currency])
        for row in rows[:limit]
    ]
    last = items[-1].id if len(rows) > limit else edge
    # asked after the rows: a month is written down before its rows go
    gone: UUID | None = await read.scalar(_ARCHIVED) if last is None else None
    return JournalPage(
        items=items,
        next_cursor=None if last is None else pages.cursor_after(last, "journal", wanted),
        looked_until=None if last is None else ids.time_of(last),
        archived_until=ids.time_of(gone) if gone is not None and gone > lowest else None,
    )
