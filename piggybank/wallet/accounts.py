"""Accounts: open, find, rename. What happens to their money and status is the ledger's."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row, text
from sqlalchemy.exc import IntegrityError

from piggybank import errors, ids, money
from piggybank.cache import Cache
from piggybank.db import search
from piggybank.db.engines import Current, Database, Write
from piggybank.ledger import balances


class Account(Struct, frozen=True, kw_only=True):
    """An account with its balance as it is in the database."""

    id: UUID
    user_id: UUID
    currency: str
    minor_unit: int
    status: str
    name: str | None
    external_id: str | None
    metadata: dict[str, str]
    balance: int
    held: int
    owed: int
    available: int
    version: int
    transactions_count: int
    created_at: datetime


_OPEN = text("""
INSERT INTO accounts (id, bucket, user_id, currency, name, external_id, metadata)
SELECT :id, :bucket, u.id, c.code, :name, :external_id, CAST(:metadata AS jsonb)
FROM users u, currencies c
WHERE u.id = :user_id AND c.code = :currency AND c.enabled
RETURNING id, user_id, currency, status, name, external_id, metadata, balance, held, owed, version, transactions_count
""")

_OWNER_EXISTS = text("""
SELECT EXISTS (SELECT FROM users WHERE id = :user_id) AS owner
""")

_GET = text("""
SELECT id, user_id, currency, status, name, external_id, metadata, balance, held, owed, version, transactions_count
FROM accounts
WHERE bucket = :bucket AND id = :id AND (CAST(:only_user AS uuid) IS NULL OR user_id = :only_user)
""")

# Newest first; `before` is the last id of the page before.
_LIST = text("""
SELECT id, user_id, currency, status, name, external_id, metadata, balance, held, owed, version, transactions_count
FROM accounts
WHERE (CAST(:user_id AS uuid) IS NULL OR user_id = :user_id)
  AND (CAST(:external_id AS text) IS NULL OR external_id = :external_id)
  AND (CAST(:before AS uuid) IS NULL OR id < :before)
ORDER BY id DESC
LIMIT :limit
""")

_SEARCH = text(f"""
SELECT id, user_id, currency, status, name, external_id, metadata, balance, held, owed, version, transactions_count
FROM accounts
WHERE id IN ({search.ACCOUNTS})
  AND (CAST(:user_id AS uuid) IS NULL OR user_id = :user_id)
  AND (CAST(:external_id AS text) IS NULL OR external_id = :external_id)
  AND (CAST(:before AS uuid) IS NULL OR id < :before)
ORDER BY id DESC
LIMIT :limit
""")

# A new version: a client that holds the ETag of the old one must see this.
_CHANGE = text("""
UPDATE accounts
SET name = CASE WHEN :sets_name THEN :name ELSE name END,
    metadata = CASE WHEN :sets_metadata THEN CAST(:metadata AS jsonb) ELSE metadata END,
    version = version + 1
WHERE bucket = :bucket AND id = :id AND (CAST(:only_user AS uuid) IS NULL OR user_id = :only_user)
RETURNING id, user_id, currency, status, name, external_id, metadata, balance, held, owed, version, transactions_count
""")


async def open_account(
    write: Write, *, user_id: UUID, currency: str, name: str | None, external_id: str | None, metadata: dict[str, str]
) -> Account:
    """A new account of `user_id`. Raises CurrencyNotEnabled, NotFound (the user), ExternalIdTaken."""
    bucket = ids.bucket_of(user_id)
    values = {
        "id": ids.new_id(bucket),
        "bucket": bucket,
        "user_id": user_id,
        "currency": currency,
        "name": name,
        "external_id": external_id,
        "metadata": _json(metadata),
    }
    try:
        row = (await write.execute(_OPEN, values)).one_or_none()
    except IntegrityError as cause:
        if external_id is not None and "accounts_external_id" in str(cause.orig):
            raise errors.ExternalIdTaken(external_id=external_id) from cause
        raise
    if row is None:
        known = (await write.execute(_OWNER_EXISTS, {"user_id": user_id})).one()
        raise errors.CurrencyNotEnabled(currency=currency) if known.owner else errors.NotFound(user_id=str(user_id))
    return _account(row)


async def get(db: Database, store: Cache, account_id: UUID, *, only_user: UUID | None) -> Account:
    """One account; `only_user`: whose it must be. Raises NotFound."""
    values = {"bucket": ids.bucket_of(account_id), "id": account_id, "only_user": only_user}
    rows = await balances.newest(db, store, account_id, balances.rows_of(_GET, values))
    if not rows:
        raise errors.NotFound(account_id=str(account_id))
    return _account(rows[0])


async def page(
    read: Current, *, user_id: UUID | None, external_id: str | None, searched: str | None = None, before: UUID | None, limit: int
) -> list[Account]:
    """Accounts, newest first, at most `limit`; where given of `user_id`, with `external_id`, found by `searched` (`db/search.py`)."""
    values = {"user_id": user_id, "external_id": external_id, "before": before, "limit": limit}
    if searched is None:
        return [_account(row) for row in await read.execute(_LIST, values)]
    return [_account(row) for row in await read.execute(_SEARCH, values | search.given(searched))]


async def change(
    write: Write, account_id: UUID, *, only_user: UUID | None, name: str | None, sets_name: bool, metadata: dict[str, str] | None
) -> Account:
    """Rename an account or replace its metadata (None: as it was). Raises NotFound."""
    values = {
        "bucket": ids.bucket_of(account_id),
        "id": account_id,
        "only_user": only_user,
        "name": name,
        "sets_name": sets_name,
        "metadata": _json(metadata or {}),
        "sets_metadata": metadata is not None,
    }
    row = (await write.execute(_CHANGE, values)).one_or_none()
    if row is None:
        raise errors.NotFound(account_id=str(account_id))
    return _account(row)


def _account(row: Row[Any]) -> Account:
    return Account(
        **row._asdict(),
        minor_unit=money.MINOR_UNITS[row.currency],
        available=row.balance - row.held,
        created_at=ids.time_of(row.id),
    )


def _json(value: dict[str, str]) -> str:
    return msgspec.json.encode(value).decode()
