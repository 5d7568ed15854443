"""A ledger of one's own on the worker's database, and accounts to try it on."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from piggybank import ids
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from piggybank.settings import Settings

Open = Callable[..., Awaitable[UUID]]


@asynccontextmanager
async def running_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger with its own lane on any database: as many as a test wants are as many processes to it."""
    db, cache = Database.of(settings), Cache(settings.cache_url)
    ledger = Ledger(db, cache)
    await ledger.start()
    yield ledger
    await ledger.stop()
    await cache.close()
    await db.close()


async def new_account(sql: asyncpg.Connection, currency: str = "EUR") -> UUID:
    """An empty account of a new user."""
    bucket = ids.new_bucket()
    user_id, account_id = ids.new_id(bucket), ids.new_id(bucket)
    await sql.execute("INSERT INTO users (id) VALUES ($1)", user_id)
    await sql.execute("INSERT INTO accounts (id, bucket, user_id, currency) VALUES ($1, $2, $3, $4)", account_id, bucket, user_id, currency)
    return account_id


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """A ledger on the worker's database."""
    async with running_ledger(settings) as made:
        yield made


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection: for what the application's role may not do."""
    connection = await asyncpg.connect(settings.owner_database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def open_account(sql: asyncpg.Connection, ledger: Ledger) -> Open:
    """Make an account of a new user, with `balance` deposited."""

    async def make(balance: int = 0, currency: str = "EUR") -> UUID:
        account_id = await new_account(sql, currency)
        if balance:
            await ledger.submit(Submission(commands.Deposit(account_id=account_id, amount=balance), SYSTEM, f"seed-{account_id}", b"seed"))
        return account_id

    return make
