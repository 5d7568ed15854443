"""What a job works with, on a database of its own."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from piggybank import ids
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider

PATIENCE_S = 20.0


@pytest.fixture
async def sql(fresh_settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection."""
    connection = await asyncpg.connect(fresh_settings.owner_database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def work(fresh_settings: Settings, sql: asyncpg.Connection) -> AsyncIterator[Work]:
    db, cache = Database.of(fresh_settings), Cache(fresh_settings.cache_url)
    made = Work(fresh_settings, db, cache, Ledger(db, cache), Provider(fresh_settings, db))
    made.cache.epoch = await sql.fetchval("SELECT epoch FROM installation")
    await made.ledger.start()
    yield made
    await made.ledger.stop()
    await made.provider.close()
    await made.cache.close()
    await made.db.close()


async def put(sql: asyncpg.Connection, topic: str, payload: Any, *, age_s: float = 2.0) -> UUID:
    """An outbox row of that age."""
    made_at = datetime.now(UTC) - timedelta(seconds=age_s)
    row_id = ids.new_id(7, int(made_at.timestamp() * 1_000) * 1_000_000)
    await sql.execute("INSERT INTO outbox (id, bucket, topic, payload) VALUES ($1, 7, $2, $3)", row_id, topic, json.dumps(payload))
    return row_id


async def waiting(sql: asyncpg.Connection) -> set[UUID]:
    """The rows that are there."""
    return {row["id"] for row in await sql.fetch("SELECT id FROM outbox")}


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.05)
