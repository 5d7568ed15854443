"""Balances as clients see them: the struct, its cached form, and the read that falls back to the database.

Money decisions never read this: they are made under the account's lock.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import Row, TextClause, text

from piggybank import cache, errors, ids, money
from piggybank.cache import Cache, Entry
from piggybank.db import archived
from piggybank.db.engines import Database, Question, Read, Seen, T

KIND = "balance"


class Balance(Struct, frozen=True, kw_only=True):
    """Whole minor units: `available = balance - held`; `owed` is what a settlement took beyond it. True at `as_of`."""

    account_id: UUID
    currency: str
    minor_unit: int
    balance: int
    held: int
    owed: int
    available: int
    version: int
    as_of: datetime


class Cached(Balance, frozen=True, kw_only=True):
    """What the cache keeps for an account: its balance, its count of posted rows, and whose it is."""

    transactions_count: int
    user_id: UUID

    def shown(self) -> Balance:
        """What a client sees of it."""
        return Balance(
            account_id=self.account_id,
            currency=self.currency,
            minor_unit=self.minor_unit,
            balance=self.balance,
            held=self.held,
            owed=self.owed,
            available=self.available,
            version=self.version,
            as_of=self.as_of,
        )


class BalanceAt(Struct, frozen=True, kw_only=True):
    """The posted balance just before a moment, and the sequence of the last row before it. Holds of the past are not kept."""

    account_id: UUID
    currency: str
    minor_unit: int
    balance: int
    sequence: int
    at: datetime


class Stored(Struct, frozen=True):
    """A changed balance, encoded once for the cache and for the outbox."""

    account_id: UUID
    version: int
    payload: bytes

    @property
    def entry(self) -> Entry:
        return Entry(str(self.account_id), self.version, self.payload)


class _Row(Protocol):
    id: UUID
    user_id: UUID
    currency: str
    balance: int
    held: int
    owed: int
    version: int
    transactions_count: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Cached).decode


def moment(at_ms: int) -> datetime:
    """Milliseconds of the epoch as a time in UTC."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC)


def cached(row: _Row, now_ns: int) -> Cached:
    """The cached form of an account row that was true at `now_ns`."""
    return Cached(
        account_id=row.id,
        currency=row.currency,
        minor_unit=money.MINOR_UNITS[row.currency],
        balance=row.balance,
        held=row.held,
        owed=row.owed,
        available=row.balance - row.held,
        version=row.version,
        as_of=moment(now_ns // 1_000_000),
        transactions_count=row.transactions_count,
        user_id=row.user_id,
    )


def stored(row: _Row, now_ns: int) -> Stored:
    """`row`, encoded."""
    return Stored(row.id, row.version, _encode(cached(row, now_ns)))


def news(changed: Sequence[Stored]) -> str:
    """The payload of the outbox row that tells of these balances: a JSON list of the accounts."""
    return msgspec.json.encode([one.account_id for one in changed]).decode()


_SELECT = text("""
SELECT id, user_id, currency, balance, held, owed, version, transactions_count
FROM accounts
WHERE bucket = :bucket AND id = :id
""")


# Ids are in posting order and carry their time: one step down the history index.
_SELECT_AT = text("""
SELECT a.user_id, a.currency, a.version, t.balance_after, t.sequence,
       c.first_id, c.last_id, c.balance AS carried_balance, c.sequence AS carried_sequence
FROM accounts a
LEFT JOIN account_checkpoints c ON c.bucket = a.bucket AND c.account_id = a.id
LEFT JOIN LATERAL (
    SELECT balance_after, sequence FROM transactions WHERE account_id = a.id AND id < :below ORDER BY id DESC LIMIT 1
) t ON true
WHERE a.bucket = :bucket AND a.id = :id
""")


def rows_of(statement: TextClause, given: Mapping[str, Any]) -> Question[Sequence[Row[Any]]]:
    """The question for all rows of `statement`, whose column `version` is the account's."""

    async def question(read: Read) -> Seen[Sequence[Row[Any]]] | None:
        rows = (await read.execute(statement, given)).all()
        return Seen(rows[0].version, rows) if rows else None

    return question


async def newest(db: Database, store: Cache, account_id: UUID, question: Question[T], *, min_version: int = 0) -> T | None:
    """What `question` finds about an account, at least as new as `min_version` and as what anybody was answered of it."""
    return await db.ask(question, await floor(db, store, account_id, min_version))


async def floor(db: Database, store: Cache, account_id: UUID, min_version: int = 0) -> int | None:
    """The version of the account that a replica must show at least, as in `Database.ask`; nobody is asked where there are none."""
    if not db.has_replicas:
        return min_version
    known = await store.floor(KIND, str(account_id))
    return None if known is None else max(known, min_version)


async def read(db: Database, store: Cache, account_id: UUID, *, only_user: UUID | None = None, min_version: int = 0) -> Cached:
    """The balance of an account, at least as new as `min_version`; `only_user`: whose it must be. Raises NotFound."""
    found = await store.read(KIND, str(account_id))
    if found.payload is not None and found.version >= min_version:
        balance = _decode(found.payload)
    else:
        question = rows_of(_SELECT, {"bucket": ids.bucket_of(account_id), "id": account_id})
        rows = await db.ask(question, None if found.floor is None else max(found.floor, min_version))
        if not rows:
            raise errors.NotFound(account_id=str(account_id))
        balance = cached(rows[0], time.time_ns())
        if found.payload is None:
            await store.fill(KIND, found, Entry(str(account_id), balance.version, _encode(balance)), cache.BALANCE_TTL_S)
        elif balance.version > found.version:  # what the cache has is out of date: nobody shall read it again
            await store.forget(KIND, [str(account_id)])
    if only_user is not None and balance.user_id != only_user:
        raise errors.NotFound(account_id=str(account_id))
    return balance


async def read_at(db: Database, store: Cache, account_id: UUID, at: datetime, *, only_user: UUID | None = None) -> BalanceAt:
    """The posted balance just before `at`; 0 before the first row. Raises NotFound, and Archived for a time between archived rows."""
    below = ids.first_id_at(at)
    values = {"bucket": ids.bucket_of(account_id), "id": account_id, "below": below}
    rows = await newest(db, store, account_id, rows_of(_SELECT_AT, values))
    if not rows or only_user not in (None, rows[0].user_id):
        raise errors.NotFound(account_id=str(account_id))
    row = rows[0]
    balance, sequence = row.balance_after, row.sequence
    if balance is None and row.last_id is not None and row.first_id < below:
        if below <= row.last_id:
            await archived.ask(db, row.last_id, below=below)
        balance, sequence = row.carried_balance, row.carried_sequence
    return BalanceAt(
        account_id=account_id,
        currency=row.currency,
        minor_unit=money.MINOR_UNITS[row.currency],
        balance=balance or 0,
        sequence=sequence or 0,
        at=at,
    )
