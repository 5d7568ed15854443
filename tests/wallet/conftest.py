"""Accounts with a past: posted rows put in by SQL at any time, as the ledger would have."""

import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from piggybank import ids
from piggybank.settings import Settings

NS_PER_MS = 1_000_000


class Posted(NamedTuple):
    """What was put in."""

    id: UUID
    at_ms: int
    amount: int
    kind: str


class Past:
    """Makes users, accounts and posted rows with the owner's role."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.sql = connection

    async def user(self) -> UUID:
        user_id = ids.new_id(ids.new_bucket())
        await self.sql.execute("INSERT INTO users (id) VALUES ($1)", user_id)
        return user_id

    async def account(self, user_id: UUID | None = None, currency: str = "EUR") -> UUID:
        user_id = user_id or await self.user()
        bucket = ids.bucket_of(user_id)
        account_id = ids.new_id(bucket)
        await self.sql.execute(
            "INSERT INTO accounts (id, bucket, user_id, currency) VALUES ($1, $2, $3, $4)", account_id, bucket, user_id, currency
        )
        return account_id

    async def post(
        self, account_id: UUID, movements: Sequence[tuple[int, int]], *, transfer_id: UUID | None = None, reference: str | None = None
    ) -> list[Posted]:
        """(milliseconds of the epoch, amount) each, in order of time."""
        bucket = ids.bucket_of(account_id)
        balance, sequence = await self.sql.fetchrow("SELECT balance, sequence FROM accounts WHERE id = $1", account_id)
        last = await self.sql.fetchval("SELECT last_transaction_id FROM accounts WHERE id = $1", account_id)
        rows, posted = [], []
        for at_ms, amount in movements:
            last = ids.following_id(last, bucket, at_ms * NS_PER_MS)
            balance, sequence = balance + amount, sequence + 1
            kinds = ("transfer_in", "transfer_out") if transfer_id else ("deposit", "withdrawal")
            kind = kinds[amount < 0]
            posted.append(Posted(last, last.int >> 80, amount, kind))
            system = "transfers" if transfer_id else "clearing"
            rows.append((last, account_id, amount, balance, sequence, bucket, kind, system, transfer_id, reference))
        await self.sql.executemany(
            "INSERT INTO transactions"
            " (id, account_id, amount, balance_after, sequence, bucket, kind, system_account, transfer_id, reference)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            rows,
        )
        system = "transfers" if transfer_id else "clearing"
        await self.sql.execute(
            f"UPDATE accounts SET balance = $2, owed = GREATEST(0, held - $2), {system} = {system} - $3, sequence = $4,"
            " transactions_count = transactions_count + $5, version = version + $5, last_transaction_id = $6 WHERE id = $1",
            account_id,
            balance,
            sum(amount for _, amount in movements),
            sequence,
            len(movements),
            last,
        )
        return posted

    async def payment(self, account_id: UUID, status: str, at: datetime) -> UUID:
        bucket = ids.bucket_of(account_id)
        payment_id = ids.new_id(bucket, int(at.timestamp()) * 1_000 * NS_PER_MS + secrets.randbelow(NS_PER_MS))
        await self.sql.execute(
            "INSERT INTO payments (id, bucket, account_id, kind, method, status, amount, updated_at, destination)"
            " VALUES ($1, $2, $3, 'withdrawal', 'direct', $4, 100, $5, '{\"iban\": \"X\"}')",
            payment_id,
            bucket,
            account_id,
            status,
            at,
        )
        return payment_id


@pytest.fixture
async def past(settings: Settings) -> AsyncIterator[Past]:
    connection = await asyncpg.connect(settings.owner_database_url)
    yield Past(connection)
    await connection.close()
