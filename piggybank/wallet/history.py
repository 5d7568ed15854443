"""Reading posted transactions: a page, one, the legs of a transfer.

Pages go by id, newest first, never by OFFSET: per account, id order is posting order, and an id carries its time, so the index
(account_id, id DESC) serves pages and dates alike. The rows, the count and the version are read in one statement, so they
belong together. Only the first page of the default size is cached, under its account's version: it is never out of date. Its `total`
comes from the account's cached entry of the same version, or with that switched off from the database.

Where the rest of a list is archived the list does not end: its last page has a cursor, and what is behind it is `Archived`.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import cache, errors, ids
from piggybank.cache import Cache, Entry, Found
from piggybank.db import archived
from piggybank.db.engines import Database
from piggybank.ledger import balances
from piggybank.ledger.commands import TRANSFER_LEGS
from piggybank.wallet import pages

PAGE_KIND = "page"
COUNT_KIND = "count"


class Transaction(Struct, frozen=True, kw_only=True):
    """One posted movement of one account; `amount` is signed, as the account sees it."""

    id: UUID
    account_id: UUID
    kind: str
    amount: int
    currency: str
    balance_after: int
    sequence: int
    transfer_id: UUID | None
    payment_id: UUID | None
    reverses: UUID | None
    reference: str | None
    description: str | None
    metadata: dict[str, str]
    created_at: datetime


class TransactionPage(Struct, frozen=True, kw_only=True):
    """Newest first. `total` counts every transaction of the account; null when the list is filtered."""

    items: list[Transaction]
    next_cursor: str | None
    total: int | None


class Filter(Struct, frozen=True, kw_only=True):
    """Which transactions of an account: from `since` on, before `until`."""

    since: datetime | None = None
    until: datetime | None = None
    kind: str | None = None
    reference: str | None = None


NO_FILTER = Filter()

# One statement, one snapshot: the count and the version are those of the rows. Whose account it is, is checked here.
_PAGE = text("""
SELECT a.id, a.user_id, a.currency, a.balance, a.held, a.owed, a.version, a.transactions_count,
       t.id AS transaction_id, t.account_id, t.kind, t.amount, t.balance_after, t.sequence, t.transfer_id, t.payment_id, t.reverses,
       t.reference, t.description, CAST(t.metadata AS text) AS metadata, c.first_id AS archived_from, c.last_id AS archived_to
FROM accounts a
LEFT JOIN account_checkpoints c ON c.bucket = a.bucket AND c.account_id = a.id
LEFT JOIN LATERAL (
    SELECT *
    FROM transactions
    WHERE account_id = a.id AND id >= :lowest AND id < :below
      AND (CAST(:kind AS text) IS NULL OR kind = :kind)
      AND (CAST(:reference AS text) IS NULL OR reference = :reference)
    ORDER BY id DESC
    LIMIT :limit
) t ON true
WHERE a.bucket = :bucket AND a.id = :account_id AND (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
ORDER BY t.id DESC
""")

_COUNT = text("SELECT transactions_count, version FROM accounts WHERE bucket = :bucket AND id = :id")

_ONE = text("""
SELECT a.version, t.id AS transaction_id, t.account_id, a.currency, t.kind, t.amount, t.balance_after, t.sequence, t.transfer_id,
       t.payment_id, t.reverses, t.reference, t.description, CAST(t.metadata AS text) AS metadata
FROM transactions t
JOIN accounts a ON a.bucket = t.bucket AND a.id = t.account_id
WHERE t.bucket = :bucket AND t.id = :id AND (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
""")

_LEGS = text("""
SELECT a.version, t.id AS transaction_id, t.account_id, a.currency, t.kind, t.amount, t.balance_after, t.sequence, t.transfer_id,
       t.payment_id, t.reverses, t.reference, t.description, CAST(t.metadata AS text) AS metadata
FROM transactions t
JOIN accounts a ON a.bucket = t.bucket AND a.id = t.account_id
WHERE t.transfer_id = :id AND (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
ORDER BY t.amount, t.id
""")


async def page(
    db: Database,
    store: Cache,
    account_id: UUID,
    wanted: Filter = NO_FILTER,
    *,
    only_user: UUID | None = None,
    cursor: str | None = None,
    limit: int = pages.LIMIT_DEFAULT,
    min_version: int = 0,
) -> TransactionPage:
    """A page of an account's transactions, at least as new as `min_version`; `only_user`: whose it must be.

    Raises NotFound, InvalidRequest for a cursor that is not of this list, Archived where only archived rows are left.
    """
    if wanted == NO_FILTER and cursor is None and limit == pages.LIMIT_DEFAULT:
        return await _first_page(db, store, account_id, only_user, min_version)
    floor = await balances.floor(db, store, account_id, min_version)
    rows, goes_on = await _rows(db, account_id, wanted, only_user, cursor, limit, floor)
    return _page(rows, account_id, wanted, limit, goes_on=goes_on)


async def one(db: Database, transaction_id: UUID, *, only_user: UUID | None = None) -> Transaction:
    """One posted transaction; raises NotFound, or Archived."""
    given = {"bucket": ids.bucket_of(transaction_id), "id": transaction_id, "only_user": only_user}
    rows = await db.ask(balances.rows_of(_ONE, given))
    if not rows:
        if only_user is None or ids.bucket_of(only_user) == ids.bucket_of(transaction_id):  # it may have been theirs
            await archived.ask(db, transaction_id)
        raise errors.NotFound(transaction_id=str(transaction_id))
    return of_row(rows[0])


async def legs(db: Database, transfer_id: UUID, *, only_user: UUID | None = None) -> list[Transaction]:
    """Both rows of a transfer, the one that took first; of another's account none is seen. Raises NotFound, or Archived."""
    rows = await db.ask(balances.rows_of(_LEGS, {"id": transfer_id, "only_user": only_user})) or ()
    whole = TRANSFER_LEGS if only_user is None else 1
    if len(rows) < whole and (only_user is None or ids.bucket_of(only_user) == ids.bucket_of(transfer_id)):  # it may have been theirs
        await archived.ask(db, transfer_id)
    if not rows:
        raise errors.NotFound(transfer_id=str(transfer_id))
    return [of_row(row) for row in rows]


async def _first_page(db: Database, store: Cache, account_id: UUID, only_user: UUID | None, min_version: int) -> TransactionPage:
    known = await store.read(balances.KIND, str(account_id))
    found: Found | None = None
    key = f"{account_id}:{known.version}"
    if known.payload is not None and known.version >= min_version:
        account = msgspec.json.decode(known.payload, type=balances.Cached)
        if only_user not in (None, account.user_id):
            raise errors.NotFound(account_id=str(account_id))
        found = await store.read(PAGE_KIND, key)
        if found.payload is not None:
            total = account.transactions_count if store.keeps(COUNT_KIND) else await _count(db, account_id, known.version)
            if total is not None:
                return msgspec.structs.replace(msgspec.json.decode(found.payload, type=TransactionPage), total=total)
    now_ns = time.time_ns()
    floor = None if known.floor is None else max(known.floor, min_version)
    rows, goes_on = await _rows(db, account_id, NO_FILTER, only_user, None, pages.LIMIT_DEFAULT, floor)
    answer = _page(rows, account_id, NO_FILTER, pages.LIMIT_DEFAULT, goes_on=goes_on)
    await store.fill(balances.KIND, known, balances.stored(rows[0], now_ns).entry, cache.BALANCE_TTL_S)
    if found is not None and rows[0].version == known.version:
        await store.fill(
            PAGE_KIND, found, Entry(key, known.version, msgspec.json.encode(msgspec.structs.replace(answer, total=None))), cache.PAGE_TTL_S
        )
    return answer


async def _count(db: Database, account_id: UUID, version: int) -> int | None:
    """How many rows the account has; None when it is of another version by now, as then the page is."""
    rows = await db.ask(balances.rows_of(_COUNT, {"bucket": ids.bucket_of(account_id), "id": account_id}), version)
    return rows[0].transactions_count if rows and rows[0].version == version else None


async def _rows(
    db: Database, account_id: UUID, wanted: Filter, only_user: UUID | None, cursor: str | None, limit: int, floor: int | None
) -> tuple[Sequence[Row[Any]], bool]:
    """The account with each row of the page, and one more; an account without rows is a row without a transaction.

    And whether the list goes on in an archive. `floor`: the version that a replica must show, as in `Database.ask`.
    """
    lowest, below = pages.id_at(wanted.since, pages.FIRST_ID), pages.id_at(wanted.until, pages.LAST_ID)
    if cursor is not None:
        below = min(below, pages.last_id(cursor, "transactions", account_id, wanted))
    given = {
        "bucket": ids.bucket_of(account_id),
        "account_id": account_id,
        "only_user": only_user,
        "lowest": lowest,
        "below": below,
        "kind": wanted.kind,
        "reference": wanted.reference,
        "limit": limit + 1,
    }
    rows = await db.ask(balances.rows_of(_PAGE, given), floor)
    if not rows:
        raise errors.NotFound(account_id=str(account_id))
    goes_on = rows[0].archived_to is not None and lowest <= rows[0].archived_to and rows[0].archived_from < below
    if goes_on and rows[0].transaction_id is None:
        await archived.ask(db, rows[0].archived_to, below=below)
    return rows, goes_on


def _page(rows: Sequence[Row[Any]], account_id: UUID, wanted: Filter, limit: int, *, goes_on: bool) -> TransactionPage:
    items = [of_row(row) for row in rows[:limit] if row.transaction_id is not None]
    more = len(rows) > limit or (goes_on and bool(items))
    return TransactionPage(
        items=items,
        next_cursor=pages.cursor_after(items[-1].id, "transactions", account_id, wanted) if more else None,
        total=rows[0].transactions_count if wanted == NO_FILTER else None,
    )


def of_row(row: Row[Any]) -> Transaction:
    """A transaction out of a row of the statements above, or of the journal."""
    return Transaction(
        id=row.transaction_id,
        account_id=row.account_id,
        kind=row.kind,
        amount=row.amount,
        currency=row.currency,
        balance_after=row.balance_after,
        sequence=row.sequence,
        transfer_id=row.transfer_id,
        payment_id=row.payment_id,
        reverses=row.reverses,
        reference=row.reference,
        description=row.description,
        metadata=msgspec.json.decode(row.metadata) if row.metadata else {},
        created_at=ids.time_of(row.transaction_id),
    )
